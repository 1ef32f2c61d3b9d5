"""From studies to jobs: each with its spec, code, inputs, digest, place and ticket."""

import csv
import functools
import json
import string
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Struct

from peftbench.addresses import is_secret, refuse_secrets
from peftbench.blessings import read_blessings
from peftbench.canonical import canonical_json, digest_of_text, identity_text
from peftbench.claims_file import read_claims, read_tables
from peftbench.config import Settings, describes_data, needs_judge, reads_losses
from peftbench.config_types import Metric, ModelConfig, Published
from peftbench.errors import UserError, did_you_mean
from peftbench.fingerprint import Code, Fingerprinter, default_fingerprinter, with_versions
from peftbench.people_file import read_people
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
from peftbench.study import BASE, Expander, Run, method_module, optim_of
from peftbench.views import (
    BlessedCode,
    Cell,
    ClaimsSpec,
    DatasetInfo,
    DescribedDataset,
    DescribedModel,
    DescribedVariant,
    DescribeSpec,
    ModelInfo,
    People,
    PlotSpec,
    ReportSpec,
    TabulateSpec,
)


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


class StudyPlan(Struct, frozen=True, kw_only=True):
    """The jobs of one study: runs with a table, a figure and a page; or a table that describes."""

    name: str
    group: str
    runs: list[Run]
    scores: list[Job]
    """One per run, in the same order; runs that are equal share theirs."""
    tabulate: Job | None = None
    plot: Job | None = None
    report: Job | None = None
    describe: Job | None = None
    claims: Job | None = None
    data: list[Job] = []
    """What the describing table reads."""

    @property
    def views(self) -> list[Job]:
        """The jobs that make its files with stable names."""
        return [job for job in (self.tabulate, self.plot, self.report, self.describe, self.claims) if job]


class Plan:
    """All jobs of a configuration, made as studies are asked for. Equal jobs are one job."""

    def __init__(self, settings: Settings, fingerprinter: Fingerprinter | None = None) -> None:
        self.settings = settings
        self.main = settings.main
        self.results = self.main.execution.results
        self._scripts = settings.root / "workflow/scripts"
        self._fingerprinter = fingerprinter or default_fingerprinter()
        self._codes: dict[str, str] = {}
        self._code_of: dict[tuple[Any, ...], tuple[str, list[Any]]] = {}
        self.blessings = read_blessings(settings.root)
        self._as_is: dict[tuple[str, str], Code] = {}
        self._studies: dict[str, StudyPlan] = {}
        self._tables: dict[str, TabulateSpec] = {}
        self.jobs: dict[str, Job] = {}
        """Digest -> job, of the studies expanded so far."""

    def study(self, name: str) -> StudyPlan:
        """The runs and jobs of a study; ``UserError`` for any mistake in its files."""
        if name not in self._studies:
            self._studies[name] = self._plan_study(name)
        return self._studies[name]

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

    def scores(self, study: StudyPlan) -> list[str]:
        """Records of all that the table of a study reads, each once."""
        jobs = [*study.scores, *study.data]
        return list(dict.fromkeys(f"{self.results}/{job.record}" for job in jobs))

    def marker(self, view: Job) -> str:
        """Marker of a table, figure or page: there only while the files beside it are of this digest."""
        return f"{self.results}/{view.directory}/{view.label}-{view.digest}.json"

    def targets(self, study: StudyPlan) -> list[str]:
        """All files of a study, with the markers that say that they are of its present digest."""
        names = [name for view in study.views for name in VIEW_FILES[view.stage]]
        files = [f"{self.results}/{name.format(study.name)}" for name in names]
        return files + [self.marker(view) for view in study.views]

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

    def retrievals(self, study: StudyPlan) -> list[str]:
        """Records of all that a study has to fetch, each once."""
        jobs = _upstream([*study.scores, *study.data])
        return sorted(f"{self.results}/{job.record}" for job in jobs if job.stage == "retrieve")

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

    def _plan_study(self, name: str) -> StudyPlan:
        expander = Expander(name, self.settings)
        study = expander.study
        if name in TAKEN:
            raise UserError(
                f"{expander.file}: the workflow has a target {name!r} of its own: rename the file"
            )
        if study.group in (*TAKEN, *self.settings.names("study")):
            raise UserError(
                f"{expander.file}: group: there is a target {study.group!r} already: choose another name"
            )
        if study.kind != "table":
            return self._plan_description(expander)
        runs = list(expander.runs())
        if not runs:
            raise UserError(f"{expander.file}: no run is left: exclude leaves all combinations out")
        scores = [self.score(run, study.metric) for run in runs]
        table = TabulateSpec(
            study=name,
            title=study.title,
            columns=study.columns,
            rows=study.rows,
            averages=list(study.averages),
            measures=study.measures,
            summaries=expander.summaries(),
            base="each" if study.include_base == "each" else "once",
            published=study.published.file if study.published else None,
            published_rows=self._published(name, study.published) if study.published else [],
            models=[self._model_info(model) for model in expander.axes["model"]],
            datasets=[
                self._dataset_info(name, study.metric)
                for name in dict.fromkeys([*expander.axes["dataset"], *expander.axes.get("target", [])])
            ],
            cells=[
                _cell(run, score, measure)
                for run, score in zip(runs, scores, strict=True)
                for measure in study.measures or [""]
            ],
            people=self._people(name, study.people),
            metric=study.metric.name if study.metric else "",
        )
        self._tables[name] = table
        tabulate = self._add("tabulate", table, {}, name, "tables/.made")
        figure = PlotSpec(
            study=name,
            title=study.title,
            kind=study.figure,
            columns=study.columns,
            summaries=table.summaries,
            labels={info.name: info.label for info in table.datasets} if study.pairs else {},
            pairs=study.pairs,
        )
        gallery = study.gallery
        if gallery:
            figure = msgspec.structs.replace(
                figure, gallery=gallery.examples, choose=gallery.choose, runs=table
            )
        plot = self._add("plot", figure, {"table": tabulate}, name, "figures/.made")
        page = ReportSpec(
            study=name,
            title=study.title,
            note=study.note,
            gallery=gallery.examples if gallery else self.main.report.gallery,
            choose=gallery.choose if gallery else "random",
            table=table,
            blessed=self._blessed(scores),
        )
        report = self._add("report", page, {"figure": plot, "table": tabulate}, name, "report/.made")
        return StudyPlan(
            name=name,
            group=study.group,
            runs=runs,
            scores=scores,
            tabulate=tabulate,
            plot=plot,
            report=report,
        )

    @functools.cached_property
    def claims(self) -> StudyPlan | None:
        """What the paper claims, held against the studies that there are; None without a file of claims."""
        path, tables = self.settings.root / "config/claims.yaml", self.settings.root / "paper/tables"
        if not path.exists():
            return None
        claims = read_claims(path, tables)
        named = dict.fromkeys(claim.study for claim in claims.claims.values() if claim.study)
        studies = [self.study(name) for name in named if name in self.settings.names("study")]
        spec = ClaimsSpec(
            claims=claims,
            studies=[self._tables[study.name] for study in studies if study.tabulate],
            published=read_tables(claims, tables),
        )
        job = self._add("claims", spec, {}, "claims", "tables/.made")
        scores = [score for study in studies for score in study.scores]
        return StudyPlan(name="claims", group="", runs=[], scores=scores, claims=job)

    def _plan_description(self, expander: Expander) -> StudyPlan:
        """A study that describes: its models, data sets and methods, and no runs."""
        study, name = expander.study, expander.name
        spec = DescribeSpec(
            study=name,
            title=study.title,
            kind=study.kind,
            note=study.note,
            models=[self._described_model(model, expander) for model in expander.axes.get("model", [])],
            datasets=[self._described_dataset(dataset) for dataset in expander.axes.get("dataset", [])],
            published_rows=self._published(name, study.published) if study.published else [],
            variants=self._variants(expander) if study.grids or "location" in expander.axes else [],
            runs=self._runs_of(name, study.runs_of),
        )
        job = self._add("describe", spec, {}, name, "tables/.made")
        data = [self.prepare(d.name) for d in spec.datasets] if describes_data(study.kind) else []
        if study.runs_of:
            data += self.study(study.runs_of).scores
        return StudyPlan(name=name, group=study.group, runs=[], scores=[], describe=job, data=data)

    def _variants(self, expander: Expander) -> list[DescribedVariant]:
        return [
            DescribedVariant(
                model=model,
                method=method,
                location=location,  # type: ignore[arg-type] # one of the method's
                settings=self._settings(settings),
                given=given,
            )
            for model, method, location, settings, given in expander.variants()
        ]

    def _people(self, name: str, file: str | None) -> People | None:
        """What people counted in the answers of a study; None for one whose answers nobody counts."""
        if not file:
            return None if file is None else People()
        return read_people(self.settings.root / file, f"config/studies/{name}.yaml: people")

    def _runs_of(self, name: str, other: str) -> TabulateSpec | None:
        """The table of the study whose runs another one shows too."""
        if not other:
            return None
        where = f"config/studies/{name}.yaml: runs_of"
        known = self.settings.names("study")
        if other not in known:
            raise UserError(f"{where}: there is no study {other!r}{did_you_mean(other, known)}")
        if self.settings.study(other).kind != "table":
            raise UserError(f"{where}: {other} has no runs: it describes")
        self.study(other)
        return self._tables[other]

    def _described_model(self, name: str, expander: Expander) -> DescribedModel:
        config = self.settings.model(name, expander.file)
        training = expander.training_of(name)
        return DescribedModel(
            name=name,
            title=config.title,
            stands_for=config.stands_for or name,
            seen_data=config.seen_data,
            template=config.names.template,
            precision=training.precision or config.precision,
            training=msgspec.to_builtins(training),
            methods={
                method: self._settings(expander.method_settings(method, name))
                for method in expander.axes.get("method", [])
            },
            names=config.names,
            architecture=self._architecture(config.architecture, name),
            vocabulary=config.published_vocabulary,
        )

    def _architecture(self, file: str, model: str) -> dict[str, Any]:
        if not file:
            return {}
        path = self.settings.root / "config/architectures" / f"{file}.json"
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"config/models/{model}.yaml: architecture: {path}: {error}") from None
        return content

    def _described_dataset(self, name: str) -> DescribedDataset:
        config = self.settings.dataset(name, "a study")
        return DescribedDataset(
            name=name,
            label=config.table_label,
            stands_for=config.stands_for,
            seen=config.seen,
            metric=config.metric.name,
            templates=config.prompt.templates,
            max_new_tokens=config.decoding.max_new_tokens,
            data=self.prepare(name).directory,
        )

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

    def _blessed(self, scores: list[Job]) -> list[BlessedCode]:
        """The blessings by which results made by other code than the present one count, each once."""
        if not self.blessings.entries:
            return []
        codes = dict.fromkeys((job.stage, job.code) for job in _upstream(scores))
        found = [
            BlessedCode(
                stage=entry.stage,
                date=entry.date,
                changes=[change.module for change in entry.changes],
                proofs=[f"{proof.compared}: {', '.join(proof.labels)}" for proof in entry.proofs],
            )
            for stage, code in codes
            for entry in self.blessings.between(stage, self._as_is[stage, code], json.loads(code))
        ]
        return sorted(
            {canonical_json(one): one for one in found}.values(), key=lambda one: (one.date, one.stage)
        )

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

    def _model_info(self, name: str) -> ModelInfo:
        config = self.settings.model(name, "a study")
        stands_for = config.stands_for or name
        return ModelInfo(name=name, title=config.title, stands_for=stands_for, parameters=config.parameters)

    def _dataset_info(self, name: str, metric: Metric | None) -> DatasetInfo:
        config = self.settings.dataset(name, "a study")
        return DatasetInfo(
            name=name,
            title=config.title,
            label=config.table_label,
            stands_for=config.stands_for,
            seen=config.seen,
            metric=(metric or config.metric).name,
        )

    def _published(self, study: str, published: Published) -> list[dict[str, str]]:
        """The rows of a file of published values, with our names for its axes; the value is ``score``."""
        where = f"config/studies/{study}.yaml: published"
        path = self.settings.root / "paper/tables" / f"{published.file}.csv"
        try:
            with path.open(encoding="utf-8", newline="") as stream:
                lines = list(csv.DictReader(stream))
        except OSError as error:
            raise UserError(f"{where}: {path}: {error.strerror}") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{where}: {path}: not a table of UTF-8 text: {error}") from None
        for axis, text in published.columns.items():
            _check_columns(text, lines[0] if lines else {}, f"{where}.columns.{axis}")
        rows = []
        for number, line in enumerate(lines, 2):
            if None in line or None in line.values():
                raise UserError(f"{where}: {path}, line {number}: more or fewer fields than the header has")
            words = {
                column: str(published.values.get(column, {}).get(word, word)) for column, word in line.items()
            }
            named = {axis: text.format(**words) for axis, text in published.columns.items()}
            if published.value not in line:
                raise UserError(
                    f"{where}: {path} has no column {published.value!r}{did_you_mean(published.value, words)}"
                )
            value = line[published.value]
            used = {column for text in published.columns.values() for column in _fields(text)}
            own = {column: word for column, word in words.items() if column not in used}
            factor = next((f for word, f in published.scale.items() if word in line.values()), None)
            if factor is not None:
                try:
                    value = f"{float(value) * factor:g}"
                except ValueError:
                    raise UserError(f"{where}: {path}, line {number}: {value!r} is no number") from None
            rows.append({**own, **named, **published.where, "score": value})
        return rows


def _check_columns(text: str, columns: Mapping[str, Any], where: str) -> None:
    """``UserError`` unless the fields of a template are names of columns and nothing more."""
    try:
        fields = [(name, form, bang) for _, name, form, bang in string.Formatter().parse(text)]
    except ValueError as error:
        raise UserError(f"{where}: {text!r}: {error}") from None
    for name, form, bang in fields:
        if name is not None and (name not in columns or form or bang):
            raise UserError(f"{where}: the table has no column {name!r}{did_you_mean(name, columns)}")


def _fields(text: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(text) if name]


TABLE_FILES = ("tables/{}.csv", "tables/{}.md", "tables/{}.html", "tables/{}.tex")
VIEW_FILES = {
    "tabulate": TABLE_FILES,
    "plot": ("figures/{}.png", "figures/{}.svg"),
    "report": ("report/{}.html",),
    "describe": TABLE_FILES,
    "claims": ("tables/{}.csv", "tables/{}_comparisons.csv", "tables/{}.md", "tables/{}.html"),
}
"""Stage of a view -> its files with stable names, relative to the results folder."""

TAKEN = ("all", "claims", *RULES.values())
"""Names of targets that are no studies."""
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


def _upstream(jobs: list[Job]) -> list[Job]:
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


def _cell(run: Run, score: Job, measure: str) -> Cell:
    return Cell(
        model=run.model,
        dataset=run.dataset,
        target=run.target,
        method=run.method,
        connector=run.connector,
        location=run.location,
        train_size=run.train_size,
        seed=run.seed,
        axes=run.axes,
        measure=measure,
        scores=score.directory,
    )
