"""The one small interface of a judge: texts in, replies out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

if TYPE_CHECKING:
    from peftbench.spec import Execution, JudgeSpec


class Item(msgspec.Struct, frozen=True):
    """One text to judge, filled in and ready to send."""

    id: str
    prompt: str
    question: str = ""
    answer: str = ""
    facts: str = ""
    """JSON with what is known of the picture, for judges that read no prompt."""


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came back for one item."""

    id: str
    text: str | None
    """The judge's text; None where there is none."""
    failed: str = ""
    """Why there is no text."""
    cut: bool = False
    """Whether the text ended because it was too long, not because the judge was done."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    """The model's name for itself; services answer for "x" with "x-2026-08-01"."""


Keep = Callable[[Reply], object]
"""Told of each reply as it arrives, possibly from several threads; what it raises ends the judging."""


class Judge(Protocol):
    """Something that replies to texts."""

    def judge(self, items: Sequence[Item], keep: Keep) -> list[Reply]:
        """The replies in the order of the items. ``UserError`` where none can be had at all."""
        ...


def make_judge(spec: JudgeSpec, execution: Execution, model_dir: Path | None) -> Judge:
    """The judge of a spec; kinds are the modules of this package with a function ``make``."""
    module = importlib.import_module(f"peftbench.judging.{spec.kind}")
    return cast(Judge, module.make(spec, execution, model_dir))
