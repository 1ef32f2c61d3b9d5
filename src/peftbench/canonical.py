"""Canonical JSON and digests: equal values have equal text, whatever their order or type of container."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

FINGERPRINT_EXEMPT = "names results; does not compute them"
DIGEST_LENGTH = 16
"""Hexadecimal digits of a digest: 64 bits, so 10,000 results collide with a chance of 3e-12."""

S = TypeVar("S", bound=msgspec.Struct)


def normalised(value: S) -> S:
    """The struct with every field of its declared type: 1 in a float field becomes 1.0, a tuple a list."""
    return msgspec.convert(msgspec.to_builtins(value), type(value))


def canonical_json(value: Any) -> str:
    """Text of plain data or structs: sorted keys, no spaces, floats by ``repr``, defaults written out.

    Structs are normalised first; inside untyped dictionaries 1 and 1.0 stay different. ``ValueError`` for NaN
    and infinities, which JSON does not have.
    """
    if isinstance(value, msgspec.Struct):
        value = normalised(value)
    plain = msgspec.to_builtins(value, str_keys=True)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of_text(text: str) -> str:
    """First 16 hexadecimal digits of the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def digest(value: Any) -> str:
    """Digest of a value's canonical JSON."""
    return digest_of_text(canonical_json(value))


def identity_text(stage: str, spec: str, code: str, inputs: str) -> str:
    """What a job's digest is taken of, from parts that are canonical JSON already."""
    return f'{{"code":{code},"inputs":{inputs},"spec":{spec},"stage":{json.dumps(stage)}}}'


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
