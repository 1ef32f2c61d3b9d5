"""Time, memory, disk and downloads of one job on one kind of hardware, before any record has a say."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from peftbench.config import Settings
from peftbench.errors import UserError
from peftbench.planning import operations
from peftbench.planning.hardware import Hardware
from peftbench.planning.operations import BYTES, Example, Memory
from peftbench.planning.sizes import Method, Sizes, method_on, read_config_json, sizes_of
from peftbench.planning.subject import VIEW_STAGES, Subject
from peftbench.planning.texts import Assumptions, Lengths, known_download
from peftbench.spec import Execution, ModelNames, Prompt

VIEW_SECONDS, CELL_SECONDS = 0.5, 0.02
"""Of a table, a figure or a page, besides its start; and of each of its cells."""
PREDICTION_BYTES, SCORE_BYTES = 150.0, 60.0
"""Of one row on disk."""


class Estimate(Struct, frozen=True, kw_only=True):
    """One job. Seconds are split into what does not depend on the model's work and the work itself."""

    fixed: float
    work: float
    flops: float = 0.0
    device_memory: float = 0.0
    """Of the GPU (or what would be there), bytes; 0 where no model runs."""
    host_memory: float = 0.0
    micro_batch: int = 0
    """Of training: the largest that fits, or the one that is set; 0 where nothing fits, or nothing is trained."""
    fits: bool = True
    disk: float = 0.0
    download: float | None = 0.0
    """Bytes fetched; None: not known."""

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.fixed + self.work


class Estimator:
    """Estimates jobs of one project on one kind of hardware."""

    def __init__(
        self,
        settings: Settings,
        hardware: Hardware,
        assumptions: Assumptions,
        lengths: Lengths,
        built: Mapping[str, Any] | None = None,
    ) -> None:
        """``built``: model -> path of its ``config.json``, of those that are built already."""
        self.settings, self.hardware = settings, hardware
        self.assumptions, self.lengths = assumptions, lengths
        self.execution: Execution = settings.main.execution
        self.built = built or {}
        self.problems: dict[str, str] = {}
        """What could not be known, one line each."""
        self._sizes: dict[str, Sizes] = {}
        self._methods: dict[tuple[Any, ...], Method] = {}
        self._prompts: dict[str, Prompt] = {}
        self._titles: dict[str, str] = {}

    def sizes(self, model: str) -> Sizes:
        """Of a model of ``config/models``; ``UserError`` where there is none of that name."""
        if model not in self._sizes:
            config = self.settings.model(model, "the plan")
            architecture: dict[str, Any] = {}
            if config.architecture:
                folder = self.settings.root / "config/architectures"
                architecture = read_config_json(folder / f"{config.architecture}.json")
            elif model in self.built:
                with contextlib.suppress(UserError):  # the job that reads it will say so
                    architecture = read_config_json(self.built[model])
            found = sizes_of(config.names, config.parameters, architecture)
            if found.source != "architecture":
                lacks = (
                    "its parameter counts alone"
                    if found.source == "parameters"
                    else "nothing: a 7B model is assumed"
                )
                self.problems[model] = (
                    f"model {model}: sizes from {lacks}; name an architecture in config/models/{model}.yaml"
                )
            self._sizes[model] = found
        return self._sizes[model]

    def method(self, subject: Subject) -> Method:
        """What the method of a run adds to its model."""
        spec = subject.spec
        key = (
            subject.model,
            spec["method"],
            msgspec.json.encode(spec["settings"], order="sorted"),
            spec["location"],
        )
        if key not in self._methods:
            self._methods[key] = method_on(
                self.sizes(subject.model), spec["method"], spec["settings"], spec["location"]
            )
        return self._methods[key]

    def estimate(self, subject: Subject, computes: int = 0) -> Estimate:
        """What a job takes; ``computes``: images whose features it computes for the cache.

        Raises ``UserError`` for a model or data set that the configuration does not have.
        """
        stage = subject.stage
        if stage == "train":
            return self._train(subject, computes)
        if stage == "expose":
            return self._expose(subject)
        if stage == "predict":
            return self._predict(subject, computes)
        return self._light(subject)

    # What the model stages share.

    def _rate(self, precision: str, what: str) -> float:
        return self.hardware.flops(precision) * float(getattr(self.hardware.efficiency, what))

    def _together(self, busy: float, launched: float) -> float:
        """Time of a computation and of what starts it: one hides the other on a GPU, not on a CPU."""
        return max(busy, launched) if self.hardware.kind == "gpu" else busy + launched

    def _example(self, subject: Subject) -> Example:
        config = self.settings.dataset(subject.dataset, "the plan")
        sizes = self.sizes(subject.model)
        spec = subject.spec
        names = msgspec.convert(spec["model"], ModelNames)
        prompt = msgspec.convert(spec["prompt"], Prompt) if "prompt" in spec else config.prompt
        return self.lengths.example(
            subject.model, subject.dataset, config.stands_for, names, prompt, sizes.image_tokens
        )

    def _start(self, sizes: Sizes, precision: str, rows: float) -> float:
        over = self.hardware.overhead
        return over.job + BYTES[precision] * sizes.total / self.hardware.disk_bandwidth + rows * over.example

    def _features(self, sizes: Sizes, precision: str, images: float) -> float:
        """Seconds to fill the cache."""
        return images * (self.hardware.overhead.image + sizes.vision_flops / self._rate(precision, "prefill"))

    def _loading(self, busy: float, images: float) -> float:
        """Seconds of a computation that pictures are read for: by the same process, or beside it."""
        reading = images * self.hardware.overhead.image
        workers = self.execution.workers
        return max(busy, reading / workers) if workers else busy + reading

    def _train(self, subject: Subject, computes: int) -> Estimate:
        spec, sizes, method = subject.spec, self.sizes(subject.model), self.method(subject)
        precision, example = spec["precision"], self._example(subject)
        connector, vision = spec["connector"] == "tuned", spec.get("vision", "frozen") == "tuned"
        cached = subject.cached and not vision
        held = float(spec.get("validation") or 0.0)
        rows = max(1, round(subject.train_rows * (1.0 - held)))
        evaluated = 0
        if spec["eval_loss"]:
            evaluated = round(subject.train_rows * held) if held else subject.test_rows
        checkpointing = self.execution.gradient_checkpointing
        flops = operations.training(
            sizes, method, example, connector, vision=vision, cached=cached, checkpointing=checkpointing
        )
        memory = operations.training_memory(
            sizes, method, example, precision, connector, vision, checkpointing
        )
        learns = method.added + method.in_place + (sizes.parameters.get("connector", 0) if connector else 0)
        learns += sizes.parameters.get("vision", 0) if vision else 0
        return self._loop(
            subject, sizes, example, memory, flops, rows, evaluated, learns, cached=cached, computes=computes
        )

    def _expose(self, subject: Subject) -> Estimate:
        spec, sizes = subject.spec, self.sizes(subject.model)
        nothing = Method(added=0, kept=0.0, trains=False, mergeable=False)
        names = msgspec.convert(spec["model"], ModelNames)
        lengths = []
        for part in spec["mix"]:
            config = self.settings.dataset(part["dataset"], "the plan")
            prompt = msgspec.convert(part["prompt"], Prompt)
            lengths.append(
                self.lengths.example(
                    subject.model, part["dataset"], config.stands_for, names, prompt, sizes.image_tokens
                )
            )
        example = Example(
            prompt=sum(one.prompt for one in lengths) / len(lengths),
            answer=sum(one.answer for one in lengths) / len(lengths),
        )
        checkpointing = self.execution.gradient_checkpointing
        flops = operations.training(
            sizes, nothing, example, True, checkpointing=checkpointing, everything=True
        )
        memory = operations.training_memory(
            sizes, nothing, example, spec["precision"], True, False, checkpointing, everything=True
        )
        learns = sizes.total - sizes.parameters.get("vision", 0)
        found = self._loop(subject, sizes, example, memory, flops, subject.train_rows, 0, learns, False, 0)
        return msgspec.structs.replace(found, disk=float(BYTES[spec["precision"]] * sizes.total))

    def _loop(
        self,
        subject: Subject,
        sizes: Sizes,
        example: Example,
        memory: Memory,
        flops: operations.Flops,
        rows: int,
        evaluated: int,
        learns: int,
        cached: bool,
        computes: int,
    ) -> Estimate:
        spec, over = subject.spec, self.hardware.overhead
        precision, epochs, batch = spec["precision"], spec["epochs"], spec["global_batch"]
        room = self.room
        micro = self.execution.micro_batch or memory.largest(room, batch)
        fits = bool(micro) and memory.at(micro) <= room
        used = min(max(1, micro), batch)
        rate = self._rate(precision, "train")
        steps = math.ceil(rows / batch)
        passes = math.ceil(batch / used) * steps
        busy = self._together(rows * flops.total / rate, passes * sizes.layers * over.layer_training)
        busy += steps * 28.0 * learns / self.hardware.memory_bandwidth
        looked = (
            evaluated * flops.forward / rate
            + math.ceil(evaluated / used) * sizes.layers * over.layer_training / 3
        )
        images = 0 if cached else rows + evaluated
        work = epochs * self._loading(busy + looked, images)
        fixed = self._start(sizes, precision, rows + evaluated)
        fixed += self._features(sizes, precision, computes) + 4.0 * learns / self.hardware.disk_bandwidth
        saves = epochs if spec.get("keep_epochs") else 1
        features = computes * sizes.feature_bytes * BYTES[precision] / 4.0
        return Estimate(
            fixed=fixed,
            work=work,
            flops=epochs * (rows * flops.total + evaluated * flops.forward) + computes * sizes.vision_flops,
            device_memory=memory.at(used),
            host_memory=self._host(sizes, precision, memory.at(used)),
            micro_batch=used if fits else 0,
            fits=fits,
            disk=4.0 * learns * saves + 5e4 + features,
        )

    @property
    def room(self) -> float:
        """Bytes that one job may fill on its device."""
        return self.hardware.memory * self.hardware.efficiency.memory

    def _host(self, sizes: Sizes, precision: str, device: float) -> float:
        """Main memory: on a CPU everything, with a GPU what is read on the way there."""
        if self.hardware.kind == "cpu":
            return operations.RUNTIME_HOST + device
        return 4.0e9 + BYTES[precision] * sizes.total * 0.3

    def _predict(self, subject: Subject, computes: int) -> Estimate:
        spec, sizes, method = subject.spec, self.sizes(subject.model), self.method(subject)
        over, hardware = self.hardware.overhead, self.hardware
        precision, rows = spec["precision"], subject.test_rows
        batch, most = int(spec["decoding"]["batch_size"]), int(spec["decoding"]["max_new_tokens"])
        config = self.settings.dataset(subject.dataset, "the plan")
        example = self._example(subject)
        mean, longest = self.lengths.steps(subject.model, subject.dataset, config.stands_for, most)
        cached = subject.cached and spec.get("vision", "frozen") == "frozen"
        merge = spec.get("merge", "auto")
        merged = method.mergeable and (merge == "always" or (merge == "auto" and precision == "fp32"))
        cost = operations.answering(sizes, method, example, longest, precision, merged, cached)
        batches = math.ceil(rows / batch)
        launch = sizes.layers * over.layer_step
        prefill = self._together(rows * cost.prefill / self._rate(precision, "prefill"), batches * launch)
        read = (cost.pass_bytes + min(batch, rows) * cost.cache_bytes) / (
            hardware.memory_bandwidth * hardware.efficiency.decode
        )
        per_pass = max(
            read, min(batch, rows) * cost.decode / max(1.0, longest - 1.0) / self._rate(precision, "prefill")
        )
        decode = batches * (longest - 1.0) * self._together(per_pass, launch)
        memory = operations.answering_memory(sizes, method, example, longest, precision)
        needed = memory.at(min(batch, max(1, rows)))
        features = computes * sizes.feature_bytes * BYTES[precision] / 4.0
        return Estimate(
            fixed=self._start(sizes, precision, rows) + self._features(sizes, precision, computes),
            work=self._loading(prefill + decode, 0 if cached else rows),
            flops=rows * (cost.prefill + cost.decode * mean / max(1.0, longest))
            + computes * sizes.vision_flops,
            device_memory=needed,
            host_memory=self._host(sizes, precision, needed),
            fits=needed <= self.room,
            disk=rows * PREDICTION_BYTES + features,
        )

    # All others: bytes and rows.

    def _light(self, subject: Subject) -> Estimate:
        over, assumptions, stage = self.hardware.overhead, self.assumptions, subject.stage
        rows = subject.train_rows + subject.test_rows
        work, disk, download = 0.0, 2e3, 0.0
        memory = operations.RUNTIME_LIGHT
        if stage == "retrieve":
            known = self._download(subject)
            size = known or 0.0
            work, disk = size / self.hardware.network_bandwidth + 1.0, size
            return Estimate(fixed=over.light_job, work=work, disk=disk, download=known, host_memory=memory)
        if stage == "prepare":
            picture = assumptions.image_bytes if subject.inputs else assumptions.image_bytes / 20
            work, disk = rows * over.row, rows * (picture + 300.0)
            work += disk / self.hardware.disk_bandwidth + (rows * over.image / 2 if subject.inputs else 0.0)
        elif stage == "build":
            size = 2.0 * self.sizes(subject.model).total
            work, memory = 2.0 * size / self.hardware.disk_bandwidth, 5e8
            disk = size if subject.inputs > 1 else 5e6  # one checkpoint is linked, several are joined
        elif stage == "score":
            work, disk = subject.test_rows * over.row / 10, subject.test_rows * SCORE_BYTES
        elif stage == "judge":
            return self._judge(subject)
        elif stage in VIEW_STAGES:
            work, disk, memory = VIEW_SECONDS + subject.test_rows * CELL_SECONDS, 5e5, 2e8
        elif stage == "subset":
            work = subject.train_rows * over.row / 50
        return Estimate(fixed=over.light_job, work=work, disk=disk, download=download, host_memory=memory)

    def _judge(self, subject: Subject) -> Estimate:
        rows, over = subject.test_rows, self.hardware.overhead
        if subject.spec.get("kind") == "endpoint":
            work = rows * self.assumptions.judgement_seconds / self.execution.judge_concurrency
        elif subject.heavy:
            # The judge's own sizes are those of the model it names; one item at a time, by memory bandwidth.
            work = rows * float(subject.spec["max_tokens"]) / 2 * 32 * over.layer_step
        else:
            work = rows * over.row
        return Estimate(
            fixed=over.job if subject.heavy else over.light_job,
            work=work,
            disk=rows * 1e3,
            host_memory=operations.RUNTIME_HOST if subject.heavy else operations.RUNTIME_LIGHT,
        )

    def _download(self, subject: Subject) -> float | None:
        spec = subject.spec
        if spec.get("content"):
            return 0.0
        known = known_download(self.assumptions.downloads, spec.get("hub", ""), spec.get("url", ""))
        if known is not None:
            return known
        if subject.weights:
            return 2.0 * self.sizes(subject.weights).total / subject.of_several
        if spec.get("repo_type") == "model" and spec.get("hub"):
            return 5e6  # tokenizer and configuration
        return None


def try_estimate(estimator: Estimator, subject: Subject, computes: int = 0) -> Estimate | None:
    """The estimate, or None for a record of what the configuration no longer has."""
    try:
        return estimator.estimate(subject, computes)
    except (UserError, msgspec.ValidationError, KeyError, TypeError, ValueError):
        return None
