"""What every script of the workflow shares: opening its ticket, running its stage, leaving its record.

A job is told everything by its ticket and refuses to start when the code or the inputs on disk are no
longer those that the ticket was made for. So a result can be wrong only if it was asked for wrongly, and
never sits under a name that promises something else.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import msgspec

from peftbench.addresses import without_secrets
from peftbench.blessings import CODE_AS_RUN, read_blessings
from peftbench.canonical import canonical_json, digest_of_text, identity_text
from peftbench.errors import RunFailed, Suspended, UserError
from peftbench.failures import forget_failure, note_failure, result_or_failure
from peftbench.fingerprint import Code, changes, guard_imports
from peftbench.lease import myself
from peftbench.outputs import check_outputs
from peftbench.provenance import Meter
from peftbench.running import State, announced_job
from peftbench.spec import SPECS, Execution, Spec
from peftbench.stages import RULES, TOLERANT, live_code
from peftbench.store import (
    FAILED,
    Record,
    atomic_json,
    directory_digest,
    locked,
    no_space_in_one_line,
    partial_directory,
    read_record,
)
from peftbench.views import VIEWS

FINGERPRINT_EXEMPT = "carries jobs; does not compute results"
INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM, as shells have it."""
SUSPENDED = 75
"""Exit status of a run that stopped early at a checkpoint (EX_TEMPFAIL): started again, it goes on from there."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived."""


class Ticket(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a job is asked to make. The label is for people and not part of the digest."""

    stage: str
    spec: dict[str, Any]
    code: Code
    inputs: dict[str, str]
    label: str

    @property
    def digest(self) -> str:
        """Digest of the result that this ticket asks for."""
        parts = (canonical_json(part) for part in (self.spec, self.code, self.inputs))
        return digest_of_text(identity_text(self.stage, *parts))


class Job:
    """An opened ticket: what the stage's function needs."""

    def __init__(
        self,
        ticket: Ticket,
        spec: Spec,
        inputs: dict[str, Path],
        output: Path,
        work: Path,
        execution: Execution,
    ) -> None:
        self.ticket = ticket
        self.spec: Any = spec
        """The typed spec; its type is the stage's (``SPECS``, ``VIEWS``)."""
        self._inputs = inputs
        self.output = output
        """The record or marker that this job ends with."""
        self.work = work
        """Folder to fill. Of a stage with a digest it is a temporary one; its entries move up at the end."""
        self.execution = execution
        self.results = Path(execution.results)
        self.staging = self.results / ".staging" / ticket.digest
        """For what must survive a killed job: partial downloads, checkpoints. It goes once the record is written."""
        self.images = self.results / "images"
        """The content-addressed image store."""

    def input(self, name: str) -> Path:
        """Folder of the result that the ticket calls ``name``."""
        return self._inputs[name]

    @property
    def files(self) -> dict[str, Path]:
        """Folders with what was retrieved, by the names of the source's ``from:``."""
        prefix = "files."
        return {n.removeprefix(prefix): p for n, p in self._inputs.items() if n.startswith(prefix)}

    def optional_input(self, name: str) -> Path | None:
        """Like ``input``; None where the ticket has no such input."""
        return self._inputs.get(name)


Work = Callable[[Job], dict[str, Any]]


def run_stage(
    stage: str,
    work: Work,
    description: str,
    heavy: bool = False,
    spreads: bool = False,
    argv: list[str] | None = None,
) -> NoReturn:
    """The main program of a script: parse, refuse or run, leave the record, exit.

    ``work`` returns facts for the record. ``heavy`` stages import torch, or are many and short beside what
    they import: on the CPU they run as forks of the warm worker. One that ``spreads`` may be several processes
    (``training.launch``).

    Exits with 0; 1 after a line ``error: ...``; 75 where a run stopped early at a checkpoint and shall be started
    again; 130 after an interruption.
    """
    arguments = _parser(stage, description).parse_args(argv)
    with _logging_to(arguments.log):
        try:
            status = _run(stage, work, heavy, spreads, arguments)
        except UserError as error:
            print(f"error: {without_secrets(str(error))}", file=sys.stderr)
            status = 1
        except Suspended as stop:
            print(f"suspended: {stop}; run snakemake again and it goes on from there", file=sys.stderr)
            status = SUSPENDED
        except (Interrupted, KeyboardInterrupt):
            if "PEFTBENCH_RANKS" not in os.environ:  # else the launcher says so
                print("interrupted; nothing was stored; run snakemake again", file=sys.stderr)
            status = INTERRUPTED
        except Exception as error:
            _report_bug(error, arguments.log)
            status = 1
        sys.stderr.flush()
        sys.stdout.flush()
    sys.exit(status)


def _parser(stage: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        epilog="'peftbench ticket PATH' prints the command line for any result of the present configuration.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--ticket",
        required=True,
        help=f"what to make: a {stage} ticket, as a file, as JSON, or '-' for stdin",
    )
    parser.add_argument(
        "--inputs", nargs="*", type=Path, default=[], metavar="RECORD", help="records of its inputs"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="RECORD", help="record to leave")
    parser.add_argument(
        "--execution", default="{}", metavar="JSON", help="execution settings; change no result"
    )
    parser.add_argument("--log", type=Path, help="file that gets a copy of all messages")
    return parser


def _run(stage: str, work: Work, heavy: bool, spreads: bool, arguments: argparse.Namespace) -> int:
    meter = Meter()
    try:
        execution = msgspec.convert(json.loads(arguments.execution), Execution)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--execution: {error}") from None
    if stage != "retrieve":
        _stay_offline()
    together = spreads and execution.processes * execution.nodes > 1
    if heavy and not together:
        from peftbench.warm import run_in_worker

        status = run_in_worker(execution)
        if status is not None:
            return status
    _use_threads(execution.threads)
    with _signals_raise():
        if together:
            from peftbench.training import launch

            if launch.is_rank():
                launch.prepare_rank()
                return launch.run_rank(
                    lambda: _part(stage, work, arguments, execution, launch.rank_folder()),
                    meter.read,
                    arguments.log,
                )
        if stage in VIEWS:
            _make_view(stage, work, arguments, execution, meter)
        else:
            _make_result(stage, work, arguments, execution, meter, together)
    return 0


def _part(
    stage: str, work: Work, arguments: argparse.Namespace, execution: Execution, folder: Path
) -> dict[str, Any]:
    """One of several processes: it holds no lock and leaves no record; that is its launcher's."""
    ticket, spec = open_ticket(stage, arguments.ticket)
    guard_imports(_live(ticket))
    inputs = match_inputs(ticket, arguments.inputs, Path(execution.results))
    return work(Job(ticket, spec, inputs, arguments.output, folder, execution))


def _make_result(
    stage: str,
    work: Work,
    arguments: argparse.Namespace,
    execution: Execution,
    meter: Meter,
    together: bool = False,
) -> None:
    output: Path = arguments.output
    ticket, spec = open_ticket(stage, arguments.ticket)
    guard_imports(_live(ticket))
    if directory_digest(output.parent) != ticket.digest:
        raise UserError(f"{output}: the ticket belongs to digest {ticket.digest}: run snakemake again")
    results = Path(execution.results)
    inputs = match_inputs(ticket, arguments.inputs, results)
    lock = results / ".locks" / ticket.digest
    with (
        no_space_in_one_line(output),
        locked(lock, lambda holder: _say(f"waiting for {holder}: it makes this run")) as lease,
    ):
        job = Job(ticket, spec, inputs, output, output.parent, execution)
        if output.exists():
            _say("already made by another process")
            shutil.rmtree(job.staging, ignore_errors=True)  # where that one was killed in its last moment
            return
        state = State(
            digest=ticket.digest,
            stage=stage,
            label=ticket.label,
            who=myself(),
            log=str(arguments.log.absolute()) if arguments.log else "",
        )
        measured: dict[str, Any] = {}
        with (
            announced_job(results, state),
            partial_directory(output.parent, lease.check) as job.work,
        ):
            try:
                if stage not in TOLERANT:
                    _refuse_failed(inputs, results)
                if together:
                    from peftbench.training.launch import launch

                    facts, measured = launch(
                        canonical_json(ticket), job.work, job.staging, execution, Interrupted
                    )
                else:
                    facts = work(job)
            except RunFailed as failure:
                facts = {FAILED: without_secrets(str(failure))}
                _say(f"warning: {ticket.label}: failed, and recorded so: {facts[FAILED]}")
            except Suspended:
                raise  # no failure: it goes on from its checkpoint
            except Exception as error:
                lease.check()  # its error is not that of the run
                with contextlib.suppress(Exception):  # the error itself is what is to be told
                    reason = without_secrets(str(error)) or type(error).__name__
                    note_failure(results, _record(ticket, {FAILED: reason}, meter))
                raise
        record = _record(ticket, facts, meter, measured)
        lease.check()
        if FAILED in facts:
            note_failure(results, record)  # first: without it nobody would see that the record is one to go
        atomic_json(output, record)
        # Last: until the record stands, only this can be gone on from. A failed run shall not be gone on from at all.
        shutil.rmtree(job.staging, ignore_errors=True)
        if FAILED not in facts:
            forget_failure(results, ticket.digest)


def _refuse_failed(inputs: dict[str, Path], results: Path) -> None:
    """``RunFailed`` where an input is a run that failed."""
    for folder in inputs.values():
        record = result_or_failure(folder, results)
        if record is not None and FAILED in record.facts:
            raise RunFailed(str(record.facts[FAILED]))


def _make_view(
    stage: str, work: Work, arguments: argparse.Namespace, execution: Execution, meter: Meter
) -> None:
    """Views have stable names; their marker, named by the digest, says what they were made from."""
    output: Path = arguments.output
    ticket, spec = open_ticket(stage, arguments.ticket)
    guard_imports(_live(ticket))
    if not output.stem.endswith(ticket.digest):
        raise UserError(f"{output}: the ticket belongs to digest {ticket.digest}: run snakemake again")
    with no_space_in_one_line(output):
        study = output.stem.removesuffix(f"-{ticket.digest}")
        lock = Path(execution.results) / ".locks" / f"{output.parent.parent.name}-{study}"
        with locked(lock, lambda holder: _say(f"waiting for {holder}: it makes this too")) as lease:
            _refuse_replaced(ticket, output, study)
            for old in output.parent.glob(f"{study}-{'[0-9a-f]' * 16}.json"):
                if old != output:
                    old.unlink(missing_ok=True)  # first: a marker without its files would be a lie
            facts = work(Job(ticket, spec, {}, output, output.parent.parent, execution))
            _refuse_replaced(ticket, output, study)
            lease.check()
            atomic_json(output, _record(ticket, facts, meter))


def _refuse_replaced(ticket: Ticket, output: Path, study: str) -> None:
    """``UserError`` where the table or figure that a view is made from is by now that of another configuration.

    Its files have stable names, so a checkout with other settings and the same results folder may replace them.
    """
    for name, digest in ticket.inputs.items():
        if not (output.parent.parent.parent / f"{name}s/.made/{study}-{digest}.json").exists():
            raise UserError(
                f"the {name} of {study} was replaced by that of another configuration meanwhile: run snakemake "
                "again, or give each configuration a results folder of its own"
            )


def _record(
    ticket: Ticket, facts: dict[str, Any], meter: Meter, measured: dict[str, Any] | None = None
) -> Record:
    assert isinstance(facts.get(FAILED, ""), str), f"facts: {FAILED!r} is for the reason of a failed run"
    as_run = _live(ticket)
    blessed = {CODE_AS_RUN: as_run} if as_run != ticket.code else {}
    return Record(
        stage=ticket.stage,
        digest=ticket.digest,
        label=ticket.label,
        spec=ticket.spec,
        code=ticket.code,
        inputs=ticket.inputs,
        facts=facts,
        provenance=meter.read() | (measured or {}) | blessed,
    )


def open_ticket(stage: str, text: str) -> tuple[Ticket, Spec]:
    """The ticket and its typed spec; ``UserError`` where it is for another stage or for other code."""
    try:
        if text == "-":
            text = sys.stdin.read()
        elif not text.lstrip().startswith("{"):
            text = Path(text).read_text(encoding="utf-8")
        ticket = msgspec.convert(json.loads(text), Ticket)
    except OSError as error:
        raise UserError(
            f"--ticket: {error.filename}: {error.strerror}: 'peftbench ticket' writes it"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--ticket: not a ticket: {error}") from None
    if ticket.stage != stage:
        wanted = RULES.get(ticket.stage, "no script")
        raise UserError(
            f"--ticket: this script makes {stage}, the ticket is for {ticket.stage}: use {wanted}.py"
        )
    try:
        spec = msgspec.convert(ticket.spec, {**SPECS, **VIEWS}[stage])
    except msgspec.ValidationError as error:
        raise UserError(f"--ticket: spec: {error}") from None
    live = _live(ticket)
    if live != ticket.code:
        blessed = read_blessings(scripts_directory().parent.parent).canonical(stage, live)
        live = blessed if blessed == ticket.code else live
    found = changes(ticket.code, live)
    if found:
        shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise UserError(
            f"code of stage {stage} changed since this job was planned ({shown}): run snakemake again"
        )
    return ticket, spec


def _live(ticket: Ticket) -> Code:
    """The code on disk, as it was when this process first asked, with the packages that the ticket names."""
    script = scripts_directory() / f"{RULES[ticket.stage]}.py"
    code, _ = live_code(ticket.stage, ticket.spec, script)
    return {"modules": code["modules"], "packages": ticket.code["packages"]}


def scripts_directory() -> Path:
    """Folder of the running script: its code, and its neighbours', is part of the fingerprint."""
    main = getattr(sys.modules["__main__"], "__file__", None) or sys.argv[0]
    return Path(main).resolve().parent


def match_inputs(ticket: Ticket, records: list[Path], results: Path) -> dict[str, Path]:
    """Folder of each input that the ticket names; ``UserError`` where one is missing or is another result.

    A run that failed is an input too, also after another Snakemake has taken its record away.
    """
    found: dict[str, Path] = {}
    for path in records:
        record = result_or_failure(path.parent, results) or read_record(path)
        if directory_digest(path.parent) != record.digest:
            raise UserError(
                f"{path}: it is of digest {record.digest}: delete its folder and run snakemake again"
            )
        names = [name for name, digest in ticket.inputs.items() if digest == record.digest]
        if not names:
            raise UserError(f"{path}: digest {record.digest} is no input of this job: run snakemake again")
        check_outputs(path.parent, record)
        for name in names:
            found[name] = path.parent
    for name, digest in ticket.inputs.items():
        if name not in found:
            raise UserError(f"--inputs: the record of input {name!r} (digest {digest}) is missing")
    return found


def _stay_offline() -> None:
    """Whatever a stage needs was retrieved before it: libraries shall fail at once rather than ask the hub.

    Compute nodes have no network, and a result must not depend on what a hub says today.
    """
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[variable] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def _use_threads(threads: int) -> None:
    """Thread count of the numerical libraries; results must not depend on how a job was started."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ[variable] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise ``Interrupted`` once; during the clean-up after it they are ignored."""

    def interrupt(number: int, frame: Any) -> None:
        for known in previous:
            signal.signal(known, signal.SIG_IGN)
        raise Interrupted

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _report_bug(error: Exception, log: Path | None) -> None:
    """A mistake of ours: one line on the terminal, the whole story in the log."""
    story = without_secrets(traceback.format_exc())
    if log is None:
        print(story, file=sys.stderr)
        return
    with log.open("a", encoding="utf-8") as stream:
        stream.write(story)
    text = without_secrets(str(error)).splitlines()[0] if str(error) else ""
    print(f"error: {type(error).__name__}: {text} (traceback in {log})", file=sys.stderr)


class _Tee:
    """A text stream whose lines also go to a file."""

    def __init__(self, stream: IO[str], copy: IO[str]) -> None:
        self._stream = stream
        self._copy = copy

    def write(self, text: str) -> int:
        self._copy.write(text)
        self._copy.flush()
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _logging_to(log: Path | None) -> Iterator[None]:
    if log is None:
        yield
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        copy = log.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        print(f"warning: {log}: {error.strerror}: no log is kept", file=sys.stderr)
        yield
        return
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Tee(streams[0], copy), _Tee(streams[1], copy)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        copy.close()
