"""Web addresses without secrets: what is named in a configuration stands in specs, records and logs for ever."""

import os
import re
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from peftbench.errors import UserError

FINGERPRINT_EXEMPT = "refuses addresses; does not change them"
HIDDEN = "***"
SHORTEST = 8
"""Characters of a secret that is looked for: shorter ones would hit words."""
_SECRET_VARIABLE = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_SECRET = re.compile(
    r"(api|access|auth|private|secret)?[_-]?(key|token|secret|password|passwd|pwd|authorization|bearer)"
    r"|sig|signature|x-amz-(signature|credential|security-token)|x-goog-(signature|credential)",
    re.IGNORECASE,
)


def is_secret(name: str) -> bool:
    """Whether a value of that name (of a query, of a request) is one that must not be stored."""
    return _SECRET.fullmatch(name) is not None


def refuse_secrets(url: str, where: str) -> None:
    """``UserError``, which does not repeat them, for an address with a password or a key in it."""
    try:
        parts = urlsplit(url)
        names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
        found = "a name or password" if "@" in parts.netloc else ""
    except ValueError as error:
        raise UserError(f"{where}: not an address ({error})") from None
    found = found or next((f"the secret {name!r}" for name in names if is_secret(name)), "")
    if found:
        raise UserError(
            f"{where}: the address holds {found}, and addresses are stored with the results: fetch the file by hand "
            "and use 'path:', or put the password into ~/.netrc"
        )


def without_secrets(text: str) -> str:
    """A text in which addresses have no passwords and no secret values, and secrets of the environment are hidden.

    Whatever is printed or stored of an error goes through here: libraries name addresses and headers as they please.
    """
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _SECRET_VARIABLE.search(name):
            text = text.replace(value, HIDDEN)
    return re.sub(r"\b\w+://[^\s\"'<>]*[^\s\"'<>:;,.)]", lambda match: _public(match[0]), text)


def _public(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    place = parts.netloc.rpartition("@")[2]
    netloc = f"{HIDDEN}@{place}" if "@" in parts.netloc else place
    query = re.sub(
        r"([^&=]+)=([^&]*)", lambda m: f"{m[1]}={HIDDEN}" if is_secret(m[1]) else m[0], parts.query
    )
    return urlunsplit((parts.scheme, netloc, parts.path, query, parts.fragment))
