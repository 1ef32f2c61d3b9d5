"""The jobs of each stage: each with its spec, code, inputs, digest, place and ticket."""

import functools
import json
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Struct

from peftbench.addresses import is_secret, refuse_secrets
from peftbench.blessings import read_blessings
from peftbench.canonical import canonical_json, digest_of_text, identity_text
from peftbench.config import Settings, needs_judge, reads_losses
from peftbench.config_types import Metric, ModelConfig
from peftbench.errors import UserError, did_you_mean
from peftbench.fingerprint import Code, Fingerprinter, default_fingerprinter, with_versions
from peftbench.retrieve.origin import Origin, parse_origins
from peftbench.spec import (
    BaseSpec,
    ChooseSpec,
    Decoding,
    Execution,
    Exposed,
    ExposeSpec,
    JudgeSpec,
    Optim,
    PredictSpec,
    PrepareSpec,
    ScoreSpec,
    SubsetSpec,
    TrainSpec,
)
from peftbench.stages import RULES, components, live_code, source_module
from peftbench.store import RECORD, atomic_bytes
from peftbench.study import BASE, Run, method_module, optim_of


class Job(Struct, frozen=True, kw_only=True):
    """One job: what it makes, from what, and where. Its texts are canonical JSON."""

    stage: str
    digest: str
    label: str
    """Name for people; not part of the digest."""
    directory: str
    """Of its result, relative to the results folder; of a view, the folder of its marker."""
    spec: str
    code: str
    inputs: "dict[str, Job]"
    cache_vision: bool = False
    local: str = ""
    """Of a retrieval: where its local files lie."""

    @property
    def record(self) -> str:
        """Its record, relative to the results folder."""
        return f"{self.directory}/{RECORD}"

    @property
    def ticket(self) -> str:
        """All that the job is told: canonical JSON with stage, spec, code, inputs and label."""
        label = canonical_json(self.label)
        inputs = _digests(self.inputs)
        return (
            f'{{"code":{self.code},"inputs":{inputs},"label":{label},"spec":{self.spec},'
            f'"stage":{canonical_json(self.stage)}}}'
        )


class Jobs:
    """The jobs of a configuration, made as they are asked for. Equal jobs are one job."""

    def __init__(self, settings: Settings, fingerprinter: Fingerprinter | None = None) -> None:
        self.settings = settings
        self.main = settings.main
        self.results = self.main.execution.results
        self.blessings = read_blessings(settings.root)
        self.jobs: dict[str, Job] = {}
        """Digest -> job, of all that has been asked for."""
        self._scripts = settings.root / "workflow/scripts"
        self._fingerprinter = fingerprinter or default_fingerprinter()
        self._codes: dict[str, str] = {}
        self._code_of: dict[tuple[Any, ...], tuple[str, list[Any]]] = {}
        self._as_is: dict[tuple[str, str], Code] = {}

    def job(self, digest: str) -> Job:
        """The job of a digest; ``UserError`` where the present configuration and code have none."""
        if digest not in self.jobs:
            raise UserError(
                self._changed_since(digest)
                or f"nothing in the present configuration and code has the digest {digest}: see 'peftbench runs'"
            )
        return self.jobs[digest]

    def _changed_since(self, digest: str) -> str:
        """What differs between the ticket of a job that was planned earlier and the nearest one of now."""
        try:
            asked = json.loads(Path(f"{self.results}/.tickets/{digest}.json").read_bytes())
            stage, label = asked["stage"], asked["label"]
        except (OSError, ValueError, LookupError):
            return ""
        alike = [
            json.loads(job.ticket) for job in self.jobs.values() if (job.stage, job.label) == (stage, label)
        ]
        found = min((_differences(asked, ticket) for ticket in alike), key=len, default=["no such job"])
        shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        return (
            f"{stage} {label} ({digest}) is no longer what configuration and code ask for ({shown}): "
            "run snakemake again"
        )

    def ticket_file(self, job: Job) -> str:
        """Where a job finds its ticket."""
        return f"{self.results}/.tickets/{job.digest}.json"

    def write_tickets(self) -> None:
        """Lay out the tickets of all planned jobs; they name what is to be made, so old ones do no harm."""
        for job in self.jobs.values():
            path = Path(self.ticket_file(job))
            data = job.ticket.encode()
            if not path.exists() or path.read_bytes() != data:
                atomic_bytes(path, data, durable=False)

    def execution(self, job: Job, micro_batch: int | None = None) -> str:
        """Execution settings of a job that are no defaults; untracked, so changing them reruns nothing.

        ``micro_batch``: what was estimated to fit, where no setting says it.
        """
        execution = self.main.execution
        cache = (execution.cache_dir or f"{self.results}/cache") if job.cache_vision else None
        replaced = msgspec.structs.replace(
            execution,
            cache_dir=cache,
            local=job.local,
            micro_batch=execution.micro_batch or micro_batch,
        )
        settings = msgspec.to_builtins(replaced)
        defaults = msgspec.to_builtins(Execution())
        return canonical_json({key: value for key, value in settings.items() if value != defaults[key]})

    # The stages, upstream first. Each method is cached by its arguments: equal jobs are made once.

    @functools.cache  # noqa: B019 (a plan lives as long as its process)
    def prepare(self, dataset: str) -> Job:
        """Preparation of a data set."""
        where = f"config/datasets/{dataset}.yaml"
        config = self.settings.dataset(dataset, where)
        source, files = self._source("data", config.source, where, config.splits)
        spec = PrepareSpec(dataset=dataset, source=source, splits=config.splits)
        return self._add("prepare", spec, files, dataset, f"data/{dataset}-{{digest}}")

    @functools.cache  # noqa: B019
    def subset(self, dataset: str, size: Any, seed: int) -> Job:
        """Draw of training examples; all of them are one draw, by whatever number they are asked for."""
        there = self.settings.dataset(dataset, "a study").splits.get("train", 0)
        size = "full" if size == "full" or size >= there else size
        spec = SubsetSpec(
            size=size, seed=seed if size != "full" else 0
        )  # all examples are the same for every seed
        inputs = {"data": self.prepare(dataset)}
        return self._add("subset", spec, inputs, f"{dataset} {size}", f"subsets/{dataset}/{size}-{{digest}}")

    @functools.cache  # noqa: B019
    def build(self, model: str) -> Job:
        """A base model; that of a variant is the one that it extends."""
        model = self.settings.base_of(model)
        where = f"config/models/{model}.yaml"
        config = self.settings.model(model, where)
        source, files = self._source("models", config.source, where)
        spec = BaseSpec(model=model, source=source, names=config.names, parameters=config.parameters)
        return self._add("build", spec, files, model, f"models/{model}-{{digest}}")

    def base(self, run: Run) -> Job:
        """The base model that a run starts from: as it came, or after the exposure."""
        return self.expose(run.model) if run.exposure else self.build(run.model)

    @functools.cache  # noqa: B019
    def expose(self, model: str) -> Job:
        """A base model after a full fine-tune on the seen data sets."""
        model = self.settings.base_of(model)
        config, exposure = self.settings.model(model, "a study"), self.main.exposure
        where = "config/config.yaml: exposure.datasets"
        lineup = self.main.lineup.datasets
        if exposure.datasets == "seen":
            names = [name for name in lineup if self.settings.dataset(name, where).seen]
        else:
            names = [self.settings.stand_in(name) for name in exposure.datasets]
        if not names:
            raise UserError(f"{where}: no data set of the lineup is seen: name those to show to {model}")
        training = self.main.training
        spec = ExposeSpec(
            model=config.names,
            mix=[Exposed(dataset=name, prompt=self.settings.dataset(name, where).prompt) for name in names],
            optim=Optim(
                learning_rate=exposure.learning_rate,
                connector_learning_rate=exposure.learning_rate,
                schedule=training.schedule,
                warmup_ratio=training.warmup_ratio,
            ),
            epochs=exposure.epochs,
            global_batch=exposure.global_batch,
            max_length=training.max_length,
            seed=exposure.seed,
            precision=config.precision,
        )
        inputs = {"base": self.build(model)} | {f"data.{name}": self.prepare(name) for name in names}
        return self._add("expose", spec, inputs, model, f"exposed/{model}-{{digest}}")

    def choose(self, run: Run) -> Job:
        """The best of a run's trials."""
        spec = ChooseSpec(trials=run.trials)
        inputs = {f"trial.{place}": self.train(run, rate) for place, rate in enumerate(run.trials)}
        label = f"{run.method} {run.model} {run.dataset} {run.connector}, best of {len(inputs)}"
        place = f"runs/{run.model}/{run.dataset}/{run.method}.chosen-{{digest}}"
        return self._add("choose", spec, inputs, label, place)

    def train(self, run: Run, rate: float | None = None) -> Job:
        """A fine-tuning run; ``rate``: the learning rate of a trial, instead of the method's own."""
        model = self.settings.model(run.model, "a study")
        settings = self._settings(run.settings)
        if rate is not None:
            settings = settings | {"learning_rate": rate}
        spec = TrainSpec(
            model=model.names,
            prompt=self.settings.dataset(run.dataset, "a study").prompt,
            method=run.method,
            settings=settings,
            connector=run.connector,
            location=run.location,
            optim=optim_of(run, settings.get("learning_rate", 0.0)),
            epochs=run.training.epochs,
            global_batch=run.training.global_batch,
            max_length=run.training.max_length,
            seed=run.seed,
            precision=run.training.precision or model.precision,
            eval_loss=run.training.eval_loss or bool(run.validation),
            validation=run.validation,
            vision=run.vision,
            keep_epochs=run.keep_epochs,
        )
        inputs = {
            "base": self.base(run),
            "data": self.prepare(run.dataset),
            "subset": self.subset(run.dataset, run.train_size, run.seed),
        }
        label = f"{run.method} {run.model} {run.dataset} {run.connector}"
        place = f"runs/{run.model}/{run.dataset}/{run.method}-{{digest}}"
        return self._add("train", spec, inputs, label, place, _may_cache(model, run))

    def predict(self, run: Run, what: Literal["answers", "losses"] = "answers") -> Job:
        """Answers of a tuned model, or of its base, to a test split; or its losses on the reference answers."""
        model = self.settings.model(run.model, "a study")
        dataset = self.settings.dataset(run.target, "a study")
        evaluation = self.main.evaluation
        if run.merge == "always" and run.method != BASE and not method_module(run.method).MERGEABLE:
            raise UserError(
                f"config/config.yaml: evaluation.merge: method {run.method} cannot be merged: set auto or never"
            )
        spec = PredictSpec(
            model=model.names,
            prompt=dataset.prompt,
            decoding=Decoding(
                # Where losses are read, one pass does.
                max_new_tokens=dataset.decoding.max_new_tokens if what == "answers" else 1,
                batch_size=evaluation.batch_size,
            ),
            method=run.method,
            settings=self._settings(run.settings),
            connector=run.connector,
            location=run.location,
            precision=run.training.precision or model.precision,
            vision=run.vision,
            epoch=run.epoch,
            merge=run.merge,
            what=what,
        )
        base = self.base(run)
        inputs = {"base": base, "data": self.prepare(run.target)}
        if run.method == BASE:
            # By what it is tested on: whichever study asks first, the same answers lie in the same place.
            above = f"runs/{run.model}/{run.target}/{BASE}-{base.digest}"
        else:
            inputs["run"] = self.choose(run) if run.trials else self.train(run)
            above = inputs["run"].directory
        tuned_on = run.target if run.method == BASE else run.dataset
        label = f"{run.method} {run.model} {tuned_on} {run.connector}"
        label += f" on {run.target}" if run.target != tuned_on else ""
        place = f"{above}/predictions-{{digest}}"
        return self._add("predict", spec, inputs, label, place, _may_cache(model, run))

    def score(self, run: Run, metric: Metric | None = None) -> Job:
        """Scores of the answers, by the metric of their data set or by another one."""
        metric = metric or self.settings.dataset(run.target, "a study").metric
        predictions = self.predict(run, "losses" if reads_losses(metric.name) else "answers")
        read = self.judge(run, metric.name) if needs_judge(metric.name) else predictions
        inputs = {"data": self.prepare(run.target), "predictions": read}
        spec = ScoreSpec(metric=metric.name, settings=metric.settings)
        return self._add(
            "score", spec, inputs, predictions.label, f"{predictions.directory}/scores-{{digest}}"
        )

    def judge(self, run: Run, scale: str) -> Job:
        """Judgements of the answers, on the scale of a metric."""
        predictions = self.predict(run)
        inputs = {"data": self.prepare(run.target), "predictions": predictions}
        spec, names = self._judge_spec(scale)
        if names:
            inputs["judge"] = self.build(names)
        place = f"{predictions.directory}/judgements-{{digest}}"
        return self._add("judge", spec, inputs, predictions.label, place)

    @functools.cache  # noqa: B019
    def _judge_spec(self, scale: str) -> tuple[JudgeSpec, str]:
        """What the judge is asked, and the model that it is, where it is one of ours."""
        judge, where = self.main.judge, "config/config.yaml: judge"
        local = judge.model if judge.kind == "local" else ""
        model = self.settings.model(local, where) if local else None
        try:
            read = import_module("peftbench.judging.prompt").read_prompt
            prompt = read(scale, self.settings.root / judge.prompt_file if judge.prompt_file else None)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        kinds = get_args(get_type_hints(JudgeSpec)["kind"])
        if judge.kind not in kinds:
            raise UserError(f"{where}: kind: unknown kind {judge.kind!r}{did_you_mean(judge.kind, kinds)}")
        endpoint = judge.kind == "endpoint"
        spec = JudgeSpec(
            kind=judge.kind,  # type: ignore[arg-type] # checked by the stage's components
            scale=scale,
            prompt=prompt,
            max_tokens=judge.max_tokens,
            tolerated=judge.tolerated,
            base_url=judge.base_url if endpoint else "",
            model=judge.model if endpoint else "",
            temperature=judge.temperature if endpoint else None,
            parameters=judge.parameters if endpoint else {},
            precision=model.precision if model else "fp32",
            names=model.names if model else None,
        )
        # The stage checks more; its module imports an HTTP client, which a plan need not pay for.
        if endpoint and not (judge.model and judge.base_url.startswith(("http://", "https://"))):
            raise UserError(
                f"{where}: an endpoint needs a model and a base_url that starts with http:// or https://"
            )
        if endpoint:
            refuse_secrets(judge.base_url, f"{where}: base_url")
            for name in filter(is_secret, judge.parameters):
                raise UserError(
                    f"{where}: parameters.{name}: keys do not belong here, where they are stored: name the environment "
                    "variable that holds it by execution.judge_key_variable"
                )
        return spec, local

    def _add(
        self,
        stage: str,
        spec: Any,
        inputs: dict[str, Job],
        label: str,
        place: str,
        cache_vision: bool = False,
        local: str = "",
    ) -> Job:
        spec_text = canonical_json(spec)
        code = self._code(stage, spec)
        digest = digest_of_text(identity_text(stage, spec_text, code, _digests(inputs)))
        if digest not in self.jobs:
            self.jobs[digest] = Job(
                stage=stage,
                digest=digest,
                label=label,
                directory=place.replace("{digest}", digest),
                spec=spec_text,
                code=code,
                inputs=inputs,
                cache_vision=cache_vision,
                local=local,
            )
        return self.jobs[digest]

    def _code(self, stage: str, spec: Any) -> str:
        """Canonical JSON of the code of a job; made once per stage and what it loads by name."""
        naming = [getattr(spec, name) for name in _NAMING.get(stage, ())]
        # Runs of one model share its names as one object; keeping it keeps its id from being another's.
        same = (stage, *(value if isinstance(value, str) else id(value) for value in naming))
        if same not in self._code_of:
            self._code_of[same] = self._find_code(stage, spec), naming
        return self._code_of[same][0]

    def _find_code(self, stage: str, spec: Any) -> str:
        plain = {key: msgspec.to_builtins(getattr(spec, key)) for key in _NAMING.get(stage, ())}
        key = f"{stage} {canonical_json(plain)}"
        if key not in self._codes:
            script = self._scripts / f"{RULES[stage]}.py"
            code, imported = live_code(stage, plain, script, self._fingerprinter)
            identity = self.main.identity
            as_is = with_versions(code, imported, identity.packages, identity.granularity)
            text = canonical_json(self.blessings.canonical(stage, as_is))
            self._as_is[stage, text] = as_is
            self._codes[key] = text
        return self._codes[key]

    def code_as_is(self, job: Job) -> Code:
        """The code on disk for a job; its ``code`` is another one where a blessing says that they are equal."""
        return self._as_is[job.stage, job.code]

    def _source(
        self, area: str, source: dict[str, Any], where: str, splits: dict[str, int] | None = None
    ) -> tuple[dict[str, Any], dict[str, Job]]:
        """A source block with its defaults written out, and the retrievals that its ``from:`` names.

        Its kind may have ``parse(source)``, and ``check_splits(source, splits)`` for the splits that a data set's file
        promises; the retrievals are inputs named ``files.<origin>``.
        """
        try:
            module = import_module(source_module(area, source, self._fingerprinter.locate))
            origins = parse_origins(source["from"]) if "from" in source else {}
            if origins and not getattr(module, "RETRIEVES", False):
                raise UserError(
                    f"source: kind {source['kind']!r} takes nothing from elsewhere: remove 'from'"
                )
            # What is retrieved is an input, with a digest of its own: the source itself only names it.
            named = source | {"from": sorted(origins)} if origins else source
            parse = getattr(module, "parse", None)
            parsed = msgspec.to_builtins(parse(named)) if parse else named
            if splits is not None and hasattr(module, "check_splits"):
                module.check_splits(parsed, splits)
            components(
                "prepare" if area == "data" else "build", {"source": parsed}, self._fingerprinter.locate
            )
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        repo_type: Literal["model", "dataset"] = "model" if area == "models" else "dataset"
        return parsed, {f"files.{name}": self._retrieve(o, repo_type) for name, o in origins.items()}

    def _retrieve(self, origin: Origin, repo_type: Literal["model", "dataset"]) -> Job:
        """One thing to fetch; equal ones are one job."""
        label = origin.hub or origin.url or origin.path
        place = f"retrieved/{origin.slug}-{{digest}}"
        return self._add("retrieve", origin.spec(repo_type), {}, label, place, local=origin.path)

    @functools.cache  # noqa: B019
    def _settings(self, text: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(text)
        return loaded


_NAMING = {
    "prepare": ("source",),
    "build": ("source", "names"),
    "expose": ("model",),
    "train": ("model", "method"),
    "predict": ("model", "method"),
    "score": ("metric",),
    "plot": ("kind",),
    "describe": ("kind",),
    "judge": ("kind", "scale", "names"),
}
"""The fields of a spec that decide which modules its job loads by name (``peftbench.stages.components``)."""


def _differences(asked: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings, modules, packages and inputs that differ between two tickets, one phrase each."""
    old, new = (
        _flat(ticket["spec"]) | _flat(ticket["code"]) | _flat({"input": ticket["inputs"]})
        for ticket in (asked, now)
    )
    found = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            hashes = key.startswith(("modules.", "input."))
            name = key.removeprefix("modules.").removeprefix("packages.").replace("input.", "input ")
            found.append(f"{name} changed" if hashes else f"{name} was {old.get(key)}, is {new.get(key)}")
    return found


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    pairs = (_flat(inner, f"{name}.{key}" if name else key) for key, inner in value.items())
    return {key: inner for part in pairs for key, inner in part.items()}


def upstream(jobs: list[Job]) -> list[Job]:
    """The jobs and all that they are made from, each once."""
    waiting, seen = list(jobs), {}
    while waiting:
        job = waiting.pop()
        if job.digest not in seen:
            seen[job.digest] = job
            waiting.extend(job.inputs.values())
    return list(seen.values())


def _may_cache(model: ModelConfig, run: Run) -> bool:
    """Whether features of the vision tower may be kept: only while it is frozen."""
    return model.cache_vision and run.vision == "frozen"


def _digests(inputs: dict[str, Job]) -> str:
    pairs = (f'"{name}":"{job.digest}"' for name, job in sorted(inputs.items()))
    return "{" + ",".join(pairs) + "}"
