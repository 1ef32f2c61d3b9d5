"""Captions for tests: written by hand, drawn from a small grammar, and prose of the standard library."""

import pydoc_data.topics
import random

# As people write them: clitics, measures, quotes, abbreviations, and what else the tokenizer has rules for.
WRITTEN = [
    "A man in a blue shirt is standing on a ladder cleaning a window.",
    "Two young guys with shaggy hair look at their hands while hanging out in the yard .",
    "A little girl's dress is pink, isn't it?",
    "The children aren't looking at the camera; they're watching a clown.",
    'A boy wearing a "Batman" T-shirt jumps off of a 10-foot wall .',
    "Several men in hard hats are operating a giant pulley system .",
    "Mr. Smith and Dr. Jones walk down St. James Ave. at night.",
    "A black-and-white dog is running through knee-high grass.",
    "Five people (two men, three women) sit at a table .",
    "At 5:30 p.m. the U.S. team won 3-2 .",
    'A sign reads: "NO PARKING -- 50% OFF!"',
    "A woman can't reach the top shelf... she cannot.",
    "It's a man's world, he's gonna say .",
    "1 1/2 cups of flour and 2 eggs",
    "A number, (555) 123-4567, is on the van.",
    "He wears a #23 jersey & blue shorts.",
    "A 6'2\" man and a 5-year-old girl",
    "rock 'n' roll band plays",
    "'tis the season",
    "A basketball player no. 12 shoots.",
    "The U.S. flag. A man salutes",
    "a dog runs after b.",
    "The next caption begins with a capital",
    "see fig.",
    "3 apples",
    "AT&T store and a B&B, r&b singer",
    "café with a jalapeño sandwich – très bon…",
    "man’s hat and “big” smile",
    "$5.00 and £3 and €4",
    "A man and a woman ( in costume ) dance .",
    "wow!!! really?? what?!",
    "..and so on",
    "etc., and so on",
    "O'Brien's pub at 7 o'clock",
    "email me@example.com or see www.example.com/a?b=c",
    "1990s-style car from the '90s",
    "w/ a hat and/or gloves",
    "[music] {braces} <b>bold</b>",
    "a.b.c. d.e",
    "two   spaces and a\ttab",
    "He said , `` hello '' .",
    "i.e. a dog, e.g. a poodle.",
    "x",
    ".",
    "-",
    "a",
    "I.",
    "No.",
    "",
]


def drawn(images: int, references: int, seed: int = 0) -> tuple[list[list[str]], list[str]]:
    """References and candidates in the style of Flickr30k."""
    rng = random.Random(seed)
    nouns = [
        "man",
        "woman",
        "boy",
        "girl",
        "dog",
        "child",
        "bike",
        "car",
        "ball",
        "field",
        "water",
        "beach",
        "snow",
        "bench",
        "table",
        "wall",
        "shirt",
        "hat",
    ]
    kinds = ["young", "old", "red", "blue", "green", "white", "black", "tall", "small"]
    verbs = ["standing", "sitting", "walking", "running", "playing", "riding", "jumping", "holding"]
    places = ["in", "on", "near", "by", "under", "behind"]

    def caption() -> str:
        words = [
            rng.choice(["A", "Two", "The"]),
            rng.choice(kinds),
            rng.choice(nouns),
            "is",
            rng.choice(verbs),
        ]
        words += [rng.choice(places), "a", rng.choice(nouns)]
        if rng.random() < 0.3:
            words += ["and", "a", "man's", rng.choice(nouns), "with", "a", rng.choice(nouns)]
        return " ".join(words) + rng.choice([".", " .", ""])

    return [[caption() for _ in range(references)] for _ in range(images)], [caption() for _ in range(images)]


def prose(lines: int) -> list[str]:
    """Real English with much punctuation: the language reference that ships with Python."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    return [line.strip() for line in text.split("\n") if line.strip()][:lines]
