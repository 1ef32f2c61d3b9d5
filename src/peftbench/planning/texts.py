"""How long texts are: from records of finished jobs, else from what ``config/planning.yaml`` says of the data set."""

import math
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Annotated

from msgspec import Meta, Struct

from peftbench.config import read_yaml, typed
from peftbench.planning.hardware import NonNegative, Positive
from peftbench.planning.operations import Example
from peftbench.planning.records import Measurement
from peftbench.planning.subject import Subject
from peftbench.spec import ModelNames, Prompt

FILE = "config/planning.yaml"
_IMAGE, _END = "\x02", "\x03"
"""Stand for the image and for the tokens that begin and end a turn."""


class Text(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Mean lengths of a data set, in characters."""

    question: NonNegative
    """With choices, without the template."""
    answer: NonNegative


class Assumptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``config/planning.yaml``."""

    characters_per_token: Positive = 4.0
    longest_answer: Annotated[float, Meta(ge=1.0)] = 2.0
    texts: dict[str, Text] = {}
    text: Text = Text(question=40, answer=10)
    downloads: dict[str, NonNegative] = {}
    image_bytes: NonNegative = 1.2e5
    judgement_seconds: NonNegative = 3.0
    half_life_days: Positive = 30.0
    half_life_records: Positive = 100.0


def read_assumptions(root: Path) -> Assumptions:
    """The project's assumptions, or the defaults where it has no such file; ``UserError`` for mistakes in it."""
    path = root / FILE
    return typed(read_yaml(path) or {}, Assumptions, FILE) if path.exists() else Assumptions()


class Lengths:
    """Mean lengths of examples by model and data set."""

    def __init__(self, assumptions: Assumptions) -> None:
        self.assumptions = assumptions
        self.trained: dict[tuple[str, str], float] = {}
        """(model, data set) -> tokens of a training example, as records measured them."""
        self.answered: dict[tuple[str, str], float] = {}
        """(model, data set) -> tokens of an answer, likewise."""
        self._templates: dict[tuple[str, ...], float] = {}

    def learn(self, measured: Iterable[tuple[Subject, Measurement]]) -> None:
        """Take the lengths that finished jobs have measured: medians by model and data set."""
        trained: dict[tuple[str, str], list[float]] = {}
        answered: dict[tuple[str, str], list[float]] = {}
        for subject, one in measured:
            facts = one.facts
            try:
                tokens = float(facts["throughput"]["tokens_per_s"]) * float(facts["seconds"])
                rows = float(facts["examples"]) * float(one.spec.get("epochs", 1))
            except (KeyError, TypeError, ValueError):
                continue
            if rows > 0.0 and tokens >= 0.0 and math.isfinite(tokens):
                into = {"train": trained, "predict": answered}.get(subject.stage)
                if into is not None:
                    into.setdefault((subject.model, subject.dataset), []).append(tokens / rows)
        self.trained |= {key: median(values) for key, values in trained.items()}
        self.answered |= {key: median(values) for key, values in answered.items()}

    def example(
        self, model: str, dataset: str, stands_for: str, names: ModelNames, prompt: Prompt, image_tokens: int
    ) -> Example:
        """A training example: with its answer and end token."""
        text = self.assumptions.texts.get(stands_for, self.assumptions.text)
        per = self.assumptions.characters_per_token
        answer = text.answer / per + 1.0
        prompt_tokens = image_tokens + self._template(names, prompt) + text.question / per
        measured = self.trained.get((model, dataset))
        if measured is not None:
            prompt_tokens = max(1.0, measured - answer)
        return Example(prompt=prompt_tokens, answer=answer)

    def steps(self, model: str, dataset: str, stands_for: str, most: int) -> tuple[float, float]:
        """Tokens of a mean answer, and passes until the longest answer of a batch has ended."""
        text = self.assumptions.texts.get(stands_for, self.assumptions.text)
        mean = self.answered.get((model, dataset), text.answer / self.assumptions.characters_per_token) + 1.0
        mean = min(mean, float(most))
        return mean, min(float(most), 1.0 + (mean - 1.0) * self.assumptions.longest_answer)

    def _template(self, names: ModelNames, prompt: Prompt) -> float:
        """Tokens of the chat template and of the wording around a question."""
        key = (names.template, *prompt.templates)
        if key not in self._templates:
            wording = [_bare(template) for template in prompt.templates]
            render = import_module("peftbench.models.template").render_chat
            chat = render(names.template, "", True, None, _IMAGE, _END, _END)
            ends = chat.count(_END)
            characters = len(chat) - ends - 1 + sum(map(len, wording)) / len(wording)
            self._templates[key] = ends + characters / self.assumptions.characters_per_token
        return self._templates[key]


def _bare(template: str) -> str:
    for field in ("question", "choices", "lettered"):
        template = template.replace("{" + field + "}", "")
    return template


def known_download(downloads: Mapping[str, float], hub: str, url: str) -> float | None:
    """Bytes of a retrieval, or None."""
    return downloads.get(hub or url)
