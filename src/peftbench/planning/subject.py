"""What a job is about, read alike from a planned job and from the record of a finished one."""

import json
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from peftbench.graph import Job
from peftbench.planning.records import Measurement

MODEL_STAGES = ("train", "expose", "predict")
"""Stages that run a model, on a GPU where there is one."""
VIEW_STAGES = ("tabulate", "plot", "report", "describe", "claims")


class Subject(Struct, frozen=True, kw_only=True):
    """What decides the cost of one job."""

    stage: str
    model: str = ""
    dataset: str = ""
    """Whose rows it reads; of a cross-domain test, the one tested on."""
    method: str = ""
    spec: Mapping[str, Any] = {}
    train_rows: int = 0
    test_rows: int = 0
    label: str = ""
    cached: bool = False
    """Whether it reads the features of the vision tower instead of computing them."""
    computes: int | None = None
    """Images whose features it is known to have computed for the cache; None: not known."""
    inputs: int = 0
    weights: str = ""
    """Of a retrieval: the model whose weights it fetches; empty: none."""
    of_several: int = 1
    """Retrievals that these weights are spread over."""

    @property
    def heavy(self) -> bool:
        """Whether it runs a model."""
        return self.stage in MODEL_STAGES or (self.stage == "judge" and self.spec.get("kind") == "local")

    @property
    def slot(self) -> str:
        """What its times are compared within: a model, a data set where no model runs, a study for its views."""
        if self.stage in VIEW_STAGES:
            return self.label
        return self.model if self.heavy or self.stage == "build" else self.dataset

    @property
    def feature_key(self) -> tuple[str, str, str]:
        """The list of images that its cached features are kept for."""
        kind = "train+" if self.spec.get("eval_loss") else "train"
        return self.model, self.dataset, kind if self.stage == "train" else self.stage


def rows_of(spec: Mapping[str, Any], split: str) -> int:
    """Examples of a split, by the spec of a preparation."""
    return int(spec.get("splits", {}).get(split, 0))


def drawn(size: Any, there: int) -> int:
    """Training examples of a draw of ``size``."""
    return there if size == "full" else min(int(size), there)


class Subjects:
    """Reads planned jobs; keeps what many share."""

    def __init__(self, base_of: Any) -> None:
        self._base_of = base_of
        self._specs: dict[str, dict[str, Any]] = {}
        self._weights: dict[str, tuple[str, int]] = {}

    def spec(self, job: Job) -> dict[str, Any]:
        """The spec of a job as plain data."""
        if job.digest not in self._specs:
            self._specs[job.digest] = {} if job.stage in VIEW_STAGES else json.loads(job.spec)
        return self._specs[job.digest]

    def learn_weights(self, builds: list[Job]) -> None:
        """Note which retrievals bring a model's weights."""
        for build in builds:
            bringing = [
                i for i in build.inputs.values() if i.stage == "retrieve" and _has_weights(self.spec(i))
            ]
            for job in bringing:
                self._weights[job.digest] = (self.spec(build)["model"], len(bringing))

    def of(self, job: Job) -> Subject:
        """What a planned job is about."""
        spec, stage, parts = self.spec(job), job.stage, job.directory.split("/")
        data = job.inputs.get("data")
        data_spec = self.spec(data) if data else {}
        model = parts[1] if parts[0] == "runs" else ""
        if stage in ("build", "expose"):
            model = parts[1].rpartition("-")[0]
        if stage == "prepare":
            data_spec = spec
        train, test = rows_of(data_spec, "train"), rows_of(data_spec, "test")
        if stage == "train":
            train = drawn(self.spec(job.inputs["subset"])["size"], train)
        if stage == "expose":
            train = sum(
                rows_of(self.spec(i), "train") for n, i in job.inputs.items() if n.startswith("data.")
            )
        weights, several = self._weights.get(job.digest, ("", 1))
        if stage in VIEW_STAGES:
            test = _cells(job.spec)
        return Subject(
            stage=stage,
            model=model,
            dataset=data_spec.get("dataset", ""),
            method=self._method(job),
            spec=spec,
            train_rows=train,
            test_rows=test,
            cached=job.cache_vision,
            label=job.label,
            inputs=len(job.inputs),
            weights=weights,
            of_several=several,
        )

    def _method(self, job: Job) -> str:
        if job.stage in ("train", "predict"):
            return str(self.spec(job)["method"])
        before = job.inputs.get("predictions") or job.inputs.get("trial.0")
        return self._method(before) if before else ""


def _cells(spec: str) -> int:
    """Cells of a view: each names the folder of its scores."""
    return spec.count(',"scores":"runs/')


def _has_weights(spec: Mapping[str, Any]) -> bool:
    files = spec.get("files") or ["*"]
    return any(name.endswith((".safetensors", ".bin", "*")) for name in files)


def subjects_of(
    measurements: list[Measurement], problems: list[str] | None = None
) -> list[tuple[Subject, Measurement]]:
    """What each record is about; those whose data are not among the records are taken as their facts say.

    A record that does not hold what those of its stage do is left out, with a line in ``problems``.
    """
    by_digest = {one.digest: one for one in measurements}
    found = []
    for one in measurements:
        try:
            found.append((_of_record(one, by_digest), one))
        except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            if problems is not None:
                text = " ".join(str(error).split())[:120]
                problems.append(
                    f"{one.path}: not what a record of {one.stage} holds ({text}): left out of the estimate"
                )
    return found


def _of_record(one: Measurement, known: Mapping[str, Measurement]) -> Subject:
    parts = one.path.split("/")
    data = known.get(one.inputs.get("data", ""))
    data_spec = one.spec if one.stage == "prepare" else data.spec if data else {}
    in_runs = parts[0] == "runs" and len(parts) > 3
    model = parts[1] if in_runs else ""
    if one.stage in ("build", "expose"):
        model = parts[-1].rpartition("-")[0]
    examples = int(one.facts.get("examples") or 0) if one.stage in MODEL_STAGES else 0
    train, test = rows_of(data_spec, "train"), rows_of(data_spec, "test")
    if one.stage in ("train", "expose"):
        train = examples or train
        # what is held out is not among the examples
        share = float(one.spec.get("validation") or 0.0)
        train = round(train / (1.0 - share)) if share < 1.0 else train
    if one.stage == "predict":
        test = examples or test
    if one.stage in VIEW_STAGES:
        test = _cells(json.dumps(one.spec, separators=(",", ":")))
    features = one.facts.get("features") or {}
    method = str(one.spec.get("method", ""))
    if not method and in_runs:
        method = parts[3].rpartition("-")[0].removesuffix(".chosen")
    return Subject(
        stage=one.stage,
        model=model,
        dataset=data_spec.get("dataset") or (parts[2] if in_runs else ""),
        method=method,
        spec=one.spec,
        train_rows=train,
        test_rows=test,
        cached=bool(features.get("cached")),
        computes=int(features.get("images") or 0) if features.get("computed") else 0,
        label=one.label,
        inputs=len(one.inputs),
    )
