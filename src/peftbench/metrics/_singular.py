"""Singular of an English word by suffix rules, with the slips that CHAIR's results depend on.

CHAIR takes the singular of every word with ``singularize`` of the library pattern. This is a restatement of
how that behaves, for the words that can name objects: rules are tried in order and the first that fits wins;
a final "s" goes unless a rule before it says otherwise. So "bus" becomes "bu", "glass" "glas", "ties" "ty"
and "dress" "dres". Words that are a *tail* of a word without singular stay ("s" is a tail of "news").
"""

from __future__ import annotations

import functools
import re

# Words without a singular of their own, and words that have no plural.
_UNINFLECTED = """
bison bream breeches britches carp chassis christmas clippers cod contretemps corps debris diabetes djinn
eland elk flounder gallows georgia graffiti headquarters herpes high-jinks homework innings jackanapes
mackerel measles mews mumps news pincers pliers proceedings rabies salmon scissors series shears species
swine swiss trout tuna whiting wildebeest
"""
_UNCOUNTABLE = """
advice bread butter cheese electricity equipment fruit furniture garbage gravel happiness information
ketchup knowledge love luggage mathematics mayonnaise meat mustard news progress research rice sand
software understanding water
"""
_UNCHANGED = (*_UNINFLECTED.split(), *_UNCOUNTABLE.split())
_IE_WORDS = """
alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie goonie groupie hankie
hippie hoagie hottie indie junkie laddie laramie lingerie meanie newbie nightie oldie pixie quickie
reverie rookie softie sortie stoolie sweetie techie toughie valkyrie veggie weenie yuppie zombie
"""
_IE = tuple(f"{word}s" for word in _IE_WORDS.split())
_IRREGULAR_PLURALS = """
atlantes>atlas atlases>atlas axes>axe beeves>beef brethren>brother children>child corpora>corpus
corpuses>corpus ephemerides>ephemeris feet>foot ganglia>ganglion geese>goose genera>genus genii>genie
graffiti>graffito helves>helve kine>cow leaves>leaf loaves>loaf men>man mongooses>mongoose monies>money
moves>move mythoi>mythos numena>numen occipita>occiput octopodes>octopus opera>opus opuses>opus our>my
oxen>ox penes>penis penises>penis people>person sexes>sex soliloquies>soliloquy teeth>tooth testes>testis
trilbys>trilby turves>turf zoa>zoon
"""
_IRREGULAR = dict(pair.split(">") for pair in _IRREGULAR_PLURALS.split())
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=.)ae$", "a"),
        (r"(?<=.)itis$", "itis"),
        (r"(?<=.)eaux$", "eau"),
        (r"(?<=quiz)zes$", ""),
        (r"(?<=matr)ices$", "ix"),
        (r"(?:(?<=ap)|(?<=vert)|(?<=ind))ices$", "ex"),
        (r"^(ox)en", r"\1"),
        (r"(alias|status)es$", r"\1"),
        (r"(?<=[octop|vir])i$", "us"),
        (r"(cris|ax|test)es$", r"\1is"),
        (r"(?<=shoe)s$", ""),
        (r"(?<=o)es$", ""),
        (r"(?<=bus)es$", ""),
        (r"(?<=[m|l])ice$", "ouse"),
        (r"(x|ch|ss|sh)es$", r"\1"),
        (r"(?<=m)ovies$", "ovie"),
        (r"(?<=.)ombies$", "ombie"),
        (r"(?<=s)eries$", "eries"),
        (r"([^aeiouy]|qu)ies$", r"\1y"),
        (r"([aeo]l)ves$", r"\1f"),
        (r"([^d]ea)ves$", r"\1f"),
        (r"arves$", "arf"),
        (r"erves$", "erve"),
        (r"([nlw]i)ves$", r"\1fe"),
        (r"([lr])ves$", r"\1f"),
        (r"([aeo])ves$", r"\1ve"),
        (r"(?<=[st]ive)s$", ""),
        (r"(?<=hive)s$", ""),
        (r"([^f])ves$", r"\1fe"),
        (r"^(analy)ses$", r"\1sis"),
        (r"(analy|ba|diagno|parenthe|progno|synop|the)ses$", r"\1sis"),
        (r"(?<=.)opses$", "opsis"),
        (r"(?<=.)yses$", "ysis"),
        (r"(h|d|r|o|n|b|cl|p)oses$", r"\1ose"),
        (r"(fruct|gluc|galact|lact|ket|malt|rib|sacchar|cellul)ose$", r"\1ose"),
        (r"(?<=.)oses$", "osis"),
        (r"(?<=[ti])a$", "um"),
        (r"(?<=n)ews$", "ews"),
        (r"s$", ""),
    )
]


@functools.lru_cache(maxsize=1 << 16)
def singular(word: str) -> str:
    """Singular of a lower-case word; unknown forms come back as they are."""
    if word.endswith("'"):
        return singular(word[:-1]) + "'s"
    if any(other.endswith(word) for other in _UNCHANGED) or word.endswith(_IE):
        return word
    for plural, one in _IRREGULAR.items():
        if word.endswith(plural):
            return word[: -len(plural)] + one
    for pattern, replacement in _RULES:
        if pattern.search(word):
            return pattern.sub(replacement, word)
    return word
