"""What a statistic is where the data do not allow one: a sentence, never a NaN."""

from msgspec import Struct

ALPHA = 0.05
"""Level of all tests, unless told otherwise."""


class NotComputable(Struct, frozen=True):
    """Stands in place of a result, with the reason in words."""

    reason: str

    def __str__(self) -> str:
        return f"not computable: {self.reason}"
