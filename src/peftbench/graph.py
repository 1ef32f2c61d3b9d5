"""From studies to jobs: the runs of each study, and its tables, figures and pages."""

import csv
import functools
import itertools
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from peftbench.canonical import canonical_json
from peftbench.claims_file import read_claims, read_tables
from peftbench.config import Settings, describes_data
from peftbench.config_types import Metric, Published
from peftbench.errors import UserError, did_you_mean
from peftbench.fingerprint import Fingerprinter
from peftbench.jobs import Job as Job
from peftbench.jobs import Jobs, upstream
from peftbench.people_file import read_people
from peftbench.stages import RULES
from peftbench.store import atomic_bytes
from peftbench.study import Expander, Run
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


class Plan(Jobs):
    """All jobs of a configuration, made as studies are asked for. Equal jobs are one job."""

    def __init__(self, settings: Settings, fingerprinter: Fingerprinter | None = None) -> None:
        super().__init__(settings, fingerprinter)
        self._studies: dict[str, StudyPlan] = {}
        self._study_of: dict[str, str] = {}
        """Digest -> the study that was planned with it first."""
        self._tables: dict[str, TabulateSpec] = {}

    def study(self, name: str) -> StudyPlan:
        """The runs and jobs of a study; ``UserError`` for any mistake in its files."""
        if name not in self._studies:
            known = len(self.jobs)
            self._studies[name] = self._plan_study(name)
            self._study_of.update(dict.fromkeys(itertools.islice(self.jobs, known, None), name))
        return self._studies[name]

    def job(self, digest: str) -> Job:
        """The job of a digest; runs and studies are planned until one has it, those it was last written for first.

        A job of a cluster asks for its own digest alone: planning all studies would cost it more than all else.
        ``UserError`` where the present configuration and code have no such job.
        """
        if digest not in self.jobs:
            self._search(digest)
        return super().job(digest)

    def _search(self, digest: str) -> None:
        names, last = self.settings.names("study"), self._read_index().get(digest)
        if last in names:
            expander = Expander(last, self.settings)
            for run in expander.runs() if expander.study.kind == "table" else ():
                self.score(run, expander.study.metric)
                if digest in self.jobs:
                    return
            self.study(last)
        for name in sorted(names, key=lambda name: name not in self.main.studies):
            if digest in self.jobs:
                return
            self.study(name)

    def write_tickets(self) -> None:
        """Lay out the tickets of all planned jobs, and the study of each: a hint for ``job``, whatever it says."""
        super().write_tickets()
        atomic_bytes(self._index, canonical_json(self._study_of).encode(), durable=False)

    @property
    def _index(self) -> Path:
        return Path(f"{self.results}/.tickets/{INDEX}")

    def _read_index(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(self._index.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            return {}

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

    def retrievals(self, study: StudyPlan) -> list[str]:
        """Records of all that a study has to fetch, each once."""
        jobs = upstream([*study.scores, *study.data])
        return sorted(f"{self.results}/{job.record}" for job in jobs if job.stage == "retrieve")

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

    def _blessed(self, scores: list[Job]) -> list[BlessedCode]:
        """The blessings by which results made by other code than the present one count, each once."""
        if not self.blessings.entries:
            return []
        codes = dict.fromkeys((job.stage, job.code) for job in upstream(scores))
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


INDEX = "studies.json"
"""Beside the tickets: digest -> study."""

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
