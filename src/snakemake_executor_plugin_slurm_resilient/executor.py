"""The stock SLURM executor, made to come through failures of jobs, nodes, SLURM and Snakemake itself.

- Jobs are known by their outputs, in SLURM's comment: a run that starts after another was killed finds what still
  waits or runs, and attaches to it.
- A cause of its own for each end, each with its own number of further submissions, inside one attempt of Snakemake.
  More time is asked for after a time limit alone, more memory after a lack of memory alone; a program that fails is
  reported to Snakemake at once.
- A query that fails says nothing about any job; a job that is in no answer is looked for elsewhere, and lost at last.
- One Snakemake process on the node instead of two, in the batch step: its environment is whole, so that a job can tell
  that it was restarted (``SLURM_RESTART_COUNT``) and start processes on all its nodes (``srun``).
"""

import asyncio
import contextlib
import re
import shlex
import subprocess
import threading
import time
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_slurm import Executor as StockExecutor
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string
from snakemake_executor_plugin_slurm.validation import validate_or_get_slurm_job_id, validate_slurm_extra
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.utils import (
    encode_target_jobs_cli_args,
    format_cli_arg,
    join_cli_args,
)

from snakemake_executor_plugin_slurm_resilient import client, packs, states
from snakemake_executor_plugin_slurm_resilient.packs import Pack, View, Waiting
from snakemake_executor_plugin_slurm_resilient.states import Cause, Row

EXCLUDED_SECONDS = 3600.0
"""For which a failed node gets no more jobs: SLURM itself takes a broken one out of service."""
LISTING_SECONDS = 1.0
NEVER = re.compile(r"Never|Invalid|Bad|Held|NotAllowed|PartitionTimeLimit|PartitionNodeLimit|held", re.ASCII)
"""Reasons of waiting jobs that do not go away by themselves."""


class SlurmExecutor(StockExecutor):
    """See the module."""

    _waiting: Waiting | None = None
    """None while the executor is being made: its watching thread begins before that has ended."""

    def __post_init__(self, test_mode: bool = False) -> None:
        """Called before any job; the stock one says where logs lie and which partitions there are."""
        settings = self.workflow.executor_settings
        self._stop = threading.Event()
        self._listing_lock = threading.Lock()
        self._listing: tuple[float, dict[str, str]] | None = None
        self._attached: dict[str, Pack] = {}
        self._longest: dict[str, int | None] = {}
        self._excluded: dict[str, float] = {}
        self._silent_since: float | None = None
        self._waiting = Waiting(settings.batch_minutes * 60.0, settings.batch_wait)
        super().__post_init__(test_mode)
        self.next_seconds_between_status_checks = settings.init_seconds_before_status_checks

    # Submission

    def run_jobs(self, jobs: list[Any]) -> None:
        """Submit jobs; small ones may wait for others."""
        for job in jobs:
            self.run_job_pre(job)
        assert self._waiting
        self._submit_all(self._waiting.add(jobs))

    def _submit_all(self, lists: Iterable[list[Any]]) -> None:
        for jobs in lists:
            self._job_submission_executor.submit(self._start, jobs)

    def _start(self, jobs: list[Any]) -> None:
        """Attach to what an earlier run submitted, and submit the rest."""
        try:
            rest = [job for job in jobs if not self._attach(job)]
            if not rest:
                return
            pack = Pack(rest)
            self._send(pack)
            for job in rest:
                self._report_job_submission_threadsafe(self._info(job, pack))
        except client.Stopped:
            return
        except Exception as error:  # whatever it is, Snakemake must hear of it, or it waits for ever
            for job in jobs:
                self._report_job_error_threadsafe(
                    SubmittedJobInfo(job), f"SLURM does not take {packs.name_of(job)}: {error}. "
                )

    def _attach(self, job: Any) -> bool:
        slurm_id = self._live().get(packs.key_of(job))
        if slurm_id is None:
            return False
        pack = self._attached.setdefault(slurm_id, Pack([], slurm_id=slurm_id, log=self._log_of(slurm_id)))
        if pack.slurm_id != slurm_id:
            return False  # it has ended meanwhile, and goes on with those that were attached before
        pack.jobs.append(job)
        pack.before.update({str(path): packs.signature(path) for path in job.output})
        self.logger.info(f"{packs.name_of(job)} is SLURM job {slurm_id} of an earlier run: attached to it.")
        self._report_job_submission_threadsafe(self._info(job, pack))
        return True

    def _live(self, fresh: bool = False) -> dict[str, str]:
        """Key of a Snakemake job -> id of the SLURM job of ours that is to make its outputs."""
        with self._listing_lock:
            if fresh or self._listing is None or time.monotonic() - self._listing[0] > LISTING_SECONDS:
                text = client.ask("squeue", "--me", "--noheader", "--format", client.LIVE_FORMAT)
                found = {}
                for line in (text or "").splitlines():
                    slurm_id, state, _, comment = (*line.split("|", 3), "", "", "")[:4]
                    if not Row(states.word(state)).ended:
                        found.update(dict.fromkeys(packs.members(comment), slurm_id))
                self._listing = (time.monotonic(), found) if text is not None else None
                return found
            return self._listing[1]

    def _log_of(self, slurm_id: str) -> Path:
        text = client.ask("scontrol", "show", "job", slurm_id) or ""
        found = re.search(r"^\s*StdOut=(.*)$", text, re.MULTILINE)
        return Path(found.group(1)) if found else Path()

    def _info(self, job: Any, pack: Pack) -> SubmittedJobInfo:
        return SubmittedJobInfo(
            job, external_jobid=pack.slurm_id, aux={"slurm_logfile": pack.log, "pack": pack}
        )

    def _send(self, pack: Pack) -> None:
        """Submit a pack, waiting for SLURM where it is away; ``Refused`` where it does not want it."""
        folder = self.slurm_logdir / pack.folder
        folder.mkdir(parents=True, exist_ok=True)
        said: set[str] = set()

        def taken_after_all(words: str, seconds: float) -> str | None:
            if not said:
                self.logger.warning(f"SLURM does not take jobs now ({words}): trying again.")
                said.add(words)
            return self._live(fresh=True).get(packs.key_of(pack.jobs[0]))

        text = client.submit(
            self._call(pack, folder),
            packs.script(self.format_job_exec(pack), folder),
            float(self.workflow.executor_settings.sbatch_patience),
            self._stop,
            taken_after_all,
        )
        slurm_id = validate_or_get_slurm_job_id(text.strip().split(";")[0], text)
        pack.log, pack.missing_since, pack.slurm_id = folder / f"{slurm_id}.log", None, slurm_id
        self.logger.info(f"{pack.name} is SLURM job {slurm_id} (log: {pack.log}).")

    def _call(self, pack: Pack, folder: Path) -> str:
        job = pack.jobs[0]
        for one in pack.jobs:
            validate_slurm_extra(one)
        now = time.monotonic()
        self._failed_nodes -= {node for node, until in self._excluded.items() if until < now}
        partition = self.get_partition_arg(job)
        view = View(pack, self._longest_in(partition))
        asked = {
            "run_uuid": pack.name,
            "slurm_logfile": folder / "%j.log",
            "comment_str": f"snakemake:{pack.key}",
            "account": next(self.get_account_arg(job)),
            "partition": partition,
            "workdir": self.workflow.workdir_init,
        }
        settings = self.workflow.executor_settings
        call = get_submit_command(view, asked, settings=settings, failed_nodes=self._failed_nodes)
        return f"{call}{set_gres_string(view)}{view.extra} --open-mode=append"

    def get_account_arg(self, job: Any) -> Any:
        """The account as an option; SLURM itself says whether it is right."""
        account = job.resources.get("slurm_account") or self.workflow.executor_settings.account
        yield f" -A {shlex.quote(str(account))}" if account else ""

    def get_partition_arg(self, job: Any) -> str:
        """The partition as an option: the job's own, that of the settings, or as the stock executor finds it."""
        settings = self.workflow.executor_settings
        partition = settings.partition
        if not job.resources.get("gpu") and "gpu" not in str(job.resources.get("gres", "")):
            partition = settings.cpu_partition or partition
        if partition and not job.resources.get("slurm_partition") and not self._partitions:
            return f" -p {shlex.quote(str(partition))}"
        return str(super().get_partition_arg(job))

    def _longest_in(self, partition: str) -> int | None:
        """Minutes that a partition allows: a job that asks for more would wait for ever."""
        if partition not in self._longest:
            words = shlex.split(partition)
            text = client.ask("sinfo", "--noheader", "--format", "%l", *words) if words else None
            limits = [client.minutes(line) for line in (text or "").split()]
            self._longest[partition] = max(filter(None, limits)) if limits and all(limits) else None
        return self._longest[partition]

    def additional_general_args(self) -> str:
        """Of the Snakemake on the node, which runs the job itself."""
        return "--executor local --scheduler greedy --keep-going"

    def get_job_args(self, job: Any) -> str:
        """What the Snakemake on the node is told to make. ``job``: a pack.

        It must not wait for files of this process, which may be gone when the job starts.
        """
        jobs = job.jobs if isinstance(job, Pack) else [job]
        specs = [spec for one in jobs for spec in one.get_target_spec()]
        rules = sorted({rule for one in jobs for rule in one.rules})
        files = list(dict.fromkeys(file for one in jobs for file in one.get_wait_for_files()))
        temporary = [file for one in jobs for file in self.workflow.dag.get_unneeded_temp_files(one)]
        wait_for = format_cli_arg("--wait-for-files", files, skip=not files)
        if len(files) > 20:
            listing = self.slurm_logdir / f"{packs.key_of(jobs[0])}.inputs.log"
            listing.write_text("".join(f"{file}\n" for file in files), encoding="utf-8")
            wait_for = format_cli_arg("--wait-for-files-file", listing)
        return str(
            join_cli_args(
                [
                    format_cli_arg("--target-jobs", encode_target_jobs_cli_args(specs)),
                    format_cli_arg("--allowed-rules", rules, quote=False),
                    format_cli_arg("--local-groupid", jobs[0].jobid, skip=not jobs[0].is_group()),
                    format_cli_arg("--cores", max(one.threads for one in jobs)),
                    format_cli_arg("--attempt", jobs[0].attempt),
                    format_cli_arg("--force-use-threads", not jobs[0].is_group()),
                    format_cli_arg("--unneeded-temp-files", temporary, skip=not temporary),
                    wait_for,
                ]
            )
        )

    # Watching

    async def sleep(self) -> None:
        """Until the next look; ended by the end of the run, and small jobs that waited long enough are submitted."""
        until = time.monotonic() + float(self.next_seconds_between_status_checks)
        while time.monotonic() < until and self.wait:
            if self._waiting:
                self._submit_all(self._waiting.due())
            await asyncio.sleep(0.2)

    async def check_active_jobs(
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Report what has ended; yield what has not, whatever goes wrong meanwhile."""
        if not self._waiting:
            return
        settings = self.workflow.executor_settings
        causes: dict[Pack, Cause] = {}
        watched = list(dict.fromkeys(info.aux["pack"] for info in active_jobs))
        try:
            causes = self._causes([pack for pack in watched if pack.slurm_id and not pack.refusal])
        except Exception as error:
            self.logger.warning(f"Looking at SLURM jobs failed ({error!r}): looking again later.")
        early = self._made_already(active_jobs, causes)
        changed = bool(causes or early)
        again = {
            pack for pack, cause in causes.items() if cause is not Cause.DONE and self._go_on(pack, cause)
        }
        for info in active_jobs:
            pack: Pack = info.aux["pack"]
            if pack.refusal:
                changed = True
                self.report_job_error(info, msg=pack.refusal, aux_logs=[str(pack.log)])
            elif info in early:
                pack.jobs.remove(info.job)
                self.report_job_success(info)
            elif pack not in causes:
                info.external_jobid = pack.slurm_id or info.external_jobid
                yield info
            elif causes[pack] is Cause.DONE or pack.made(info.job):
                self.report_job_success(info)
            elif pack in again:
                yield info
            else:
                text = self._explain(pack, causes[pack])
                self.report_job_error(info, msg=text, aux_logs=[str(pack.log)])
        for pack in again:
            pack.jobs = [job for job in pack.jobs if not pack.made(job)]
            pack.slurm_id = None
            if pack.jobs:
                self._job_submission_executor.submit(self._send_again, pack)
        for pack, cause in causes.items():
            if cause is Cause.DONE and not settings.keep_successful_logs:
                for path in (pack.log, pack.log.with_suffix(".exit.log")):
                    with contextlib.suppress(OSError):
                        path.unlink()
        first, last = settings.init_seconds_before_status_checks, settings.max_seconds_between_status_checks
        longer = first if changed else self.next_seconds_between_status_checks * 1.5
        self.next_seconds_between_status_checks = min(max(first, longer), max(first, last))

    def _made_already(
        self, active_jobs: list[SubmittedJobInfo], ended: dict[Pack, Cause]
    ) -> list[SubmittedJobInfo]:
        """Members of running packs whose outputs are there: what needs them need not wait for the others.

        Outputs come to their names whole. One member stays to the end, so that the pack is watched until then.
        """
        left: dict[Pack, list[SubmittedJobInfo]] = {}
        for info in active_jobs:
            left.setdefault(info.aux["pack"], []).append(info)
        found = []
        for pack, infos in left.items():
            if pack.slurm_id and pack not in ended and not pack.refusal and len(infos) > 1:
                made = [info for info in infos if pack.made(info.job)]
                found += made if len(made) < len(infos) else []
        return found

    def _causes(self, watched: list[Pack]) -> dict[Pack, Cause]:
        """Those of the packs that have ended; nothing about any where SLURM does not answer."""
        if not watched:
            return {}
        ids = [pack.slurm_id for pack in watched if pack.slurm_id]
        ways = [self._squeue, self._sacct]
        if self.workflow.executor_settings.status_query == "sacct":
            ways.reverse()
        rows = ways[0](ids)
        if rows is None:
            rows = {i: row for i, row in (ways[1](ids) or {}).items() if row.state == "COMPLETED"}
            self._say_silence(len(watched))
            return {pack: Cause.DONE for pack in watched if pack.slurm_id in rows}
        if self._silent_since is not None:
            self.logger.info(
                f"SLURM answers again after {time.monotonic() - self._silent_since:.0f} seconds."
            )
            self._silent_since = None
        # Accounting says NODE_FAIL or PREEMPTED of a job that SLURM has queued anew: only squeue knows what lives.
        unsure = [i for i in ids if not rows.get(i, Row("")).known]
        if ways[0] == self._sacct:
            unsure += [i for i in ids if i in rows and rows[i].ended and rows[i].state != "COMPLETED"]
        if unsure:
            other = ways[1](unsure)
            if other is None and ways[1] == self._squeue:
                rows = {i: row for i, row in rows.items() if i not in unsure}
            rows.update({i: row for i, row in (other or {}).items() if row.known})
        causes = {}
        for pack in watched:
            cause = self._cause(pack, rows.get(pack.slurm_id or "", Row("")))
            if cause is not None:
                causes[pack] = cause
        return causes

    def _cause(self, pack: Pack, row: Row) -> Cause | None:
        if row.known:
            pack.missing_since = None
            if row.ended:
                return self._cause_of_end(pack, row)
            self._warn_waiting(pack, row)
            return None
        with contextlib.suppress(OSError, ValueError):
            ended_well = int(pack.log.with_suffix(".exit.log").read_text()) == 0
            return Cause.DONE if ended_well else states.cause_of("FAILED", states.last_log(pack.log))
        pack.missing_since = pack.missing_since or time.monotonic()
        lost = time.monotonic() - pack.missing_since >= self.workflow.executor_settings.lost_after
        return Cause.LOST if lost else None

    def _cause_of_end(self, pack: Pack, row: Row) -> Cause:
        cause = states.ENDED[row.state]
        if cause in (Cause.PROGRAM, Cause.CANCELLED):
            assert pack.slurm_id
            steps = client.ask(
                "sacct", "--noheader", "--parsable2", "--format=State", "--jobs", pack.slurm_id
            )
            cause = states.cause_of(row.state, states.last_log(pack.log), steps or "")
        nodes = states.node_names(row)
        if cause is Cause.NODE and nodes:
            self._failed_nodes.add(nodes)
            self._excluded[nodes] = time.monotonic() + EXCLUDED_SECONDS
        return cause

    def _squeue(self, ids: list[str]) -> dict[str, Row] | None:
        text = client.ask("squeue", "--me", "--states=all", "--noheader", "--format", client.STATE_FORMAT)
        return None if text is None else {i: row for i, row in states.rows(text).items() if i in set(ids)}

    def _sacct(self, ids: list[str]) -> dict[str, Row] | None:
        options = ("-X", "--noheader", "--parsable2", "--format=JobIDRaw,State,Reason,NodeList")
        found: dict[str, Row] = {}
        for start in range(0, len(ids), 200):
            text = client.ask("sacct", *options, "--jobs", ",".join(ids[start : start + 200]))
            if text is None:
                return None
            found.update(states.rows(text))
        return found

    def _say_silence(self, count: int) -> None:
        if self._silent_since is None:
            self._silent_since = time.monotonic()
            self.logger.warning(f"SLURM does not answer: {count} SLURM jobs stay watched.")

    def _warn_waiting(self, pack: Pack, row: Row) -> None:
        stuck = row.state in ("REQUEUE_HOLD", "SPECIAL_EXIT") or (
            row.state == "PENDING" and NEVER.search(row.reason)
        )
        if stuck and row.reason not in pack.warned:
            pack.warned.add(row.reason)
            self.logger.warning(
                f"SLURM job {pack.slurm_id} ({pack.name}) does not start by itself ({row.reason}): "
                f"'scontrol release {pack.slurm_id}' or 'scancel {pack.slurm_id}'."
            )

    # Going on

    def _allowed(self, pack: Pack, cause: Cause) -> int:
        settings = self.workflow.executor_settings
        return {
            Cause.TIME: settings.preempted_retries if pack.capped else settings.timeout_retries,
            Cause.MEMORY: settings.memory_retries,
            Cause.PREEMPTED: settings.preempted_retries,
            Cause.GO_ON: settings.preempted_retries,
            Cause.NODE: settings.node_retries,
            Cause.LOST: settings.node_retries,
            Cause.CANCELLED: settings.cancelled_retries,
        }.get(cause, 0)

    def _go_on(self, pack: Pack, cause: Cause) -> bool:
        """Whether a pack is submitted again; it then asks for more of what it lacked."""
        allowed = self._allowed(pack, cause)
        if pack.ends[cause] >= allowed or self._stop.is_set():
            return False
        pack.ends[cause] += 1
        settings = self.workflow.executor_settings
        pack.grow(cause, settings.time_growth, settings.memory_growth)
        if cause is Cause.LOST and pack.slurm_id:
            client.ask("scancel", "--quiet", pack.slurm_id)
        self.logger.warning(
            f"SLURM job {pack.slurm_id} ({pack.name}): {cause.value}; "
            f"submitted again ({pack.ends[cause]} of {allowed})."
        )
        return True

    def _send_again(self, pack: Pack) -> None:
        try:
            self._send(pack)
        except client.Stopped:
            return
        except Exception as error:
            pack.refusal = f"SLURM does not take {pack.name} again: {error}. "

    def _explain(self, pack: Pack, cause: Cause) -> str:
        text = f"SLURM job {pack.slurm_id} ({pack.name}): {cause.value}"
        if pack.ends[cause]:
            text += f", {pack.ends[cause] + 1} times"
        more = {
            Cause.TIME: f" (last asked for {pack.time_factor:g} times its first limit)",
            Cause.MEMORY: f" (last asked for {pack.memory_factor:g} times its first memory)",
        }.get(cause, "")
        return f"{text}{more}. "

    # The end

    def cancel(self) -> None:
        """Snakemake was interrupted: end all jobs."""
        self._stop.set()
        super().cancel()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """``scancel`` by the hundred."""
        ids = sorted({info.aux["pack"].slurm_id for info in active_jobs if info.aux["pack"].slurm_id})
        for start in range(0, len(ids), 100):
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    ["scancel", "--quiet", *ids[start : start + 100]], capture_output=True, timeout=60
                )
