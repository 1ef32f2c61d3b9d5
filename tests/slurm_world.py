"""The SLURM executor without Snakemake around it: real submissions of small shell commands to a real SLURM.

``World`` is what the executor sees of Snakemake: settings, callbacks, a log. ``Task`` is a job whose command is sent as
it is, instead of by way of a Snakemake process on the node (two seconds of CPU each).
"""

import contextlib
import logging
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from snakemake_interface_executor_plugins.settings import SharedFSUsage

from slurm_lab import Lab, wait_for
from snakemake_executor_plugin_slurm_resilient import ExecutorSettings, common_settings
from snakemake_executor_plugin_slurm_resilient.packs import Asked, Pack
from snakemake_executor_plugin_slurm_resilient.stock import find_stock

QUICK = {
    "init_seconds_before_status_checks": 1,
    "max_seconds_between_status_checks": 1,
    "lost_after": 4,
    "sbatch_patience": 60,
    "batch_wait": 0.5,
}


class Task:
    """As much of a Snakemake job as executors use."""

    def __init__(self, name: str, command: str, output: Path, threads: int = 1, **resources: Any) -> None:
        self.name, self.command, self.output, self.threads = name, command, [str(output)], threads
        self.resources = Asked({"runtime": 5, "mem_mb": 200} | resources)
        self.wildcards = [output.parent.name, output.stem]
        self.attempt, self.jobid, self.rules, self.is_updated = 1, 1, [name], False
        self.external: list[str | None] = []
        self.ended = ""
        self.said = ""

    def is_group(self) -> bool:
        return False

    def log_info(self) -> None:
        pass

    def log_error(self, msg: str | None = None, **more: Any) -> None:
        self.said = msg or ""

    def register(self, external_jobid: str | None = None) -> None:
        self.external.append(external_jobid)

    def text(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return Path(self.output[0]).read_text()
        return ""


class World:
    """One executor, and what it reports. Use as a context: it ends with all its jobs."""

    def __init__(self, lab: Lab, folder: Path, monkeypatch: Any, **settings: Any) -> None:
        os.environ.pop("SLURM_JOB_ID", None)
        monkeypatch.setenv("SLURM_CONF", lab.environment["SLURM_CONF"])
        monkeypatch.chdir(folder)
        self.lab, self.folder = lab, folder
        find_stock()
        from snakemake_executor_plugin_slurm_resilient.executor import SlurmExecutor

        class Plain(SlurmExecutor):
            """Sends the tasks' commands themselves."""

            def format_job_exec(self, job: Pack) -> str:
                return (
                    "status=0\n"
                    + "\n".join(f"({task.command}) || status=1" for task in job.jobs)
                    + "\n(exit $status)"
                )

        self.logger = logging.getLogger(f"slurm-{folder}")
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False
        self.lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(record.getMessage())  # type: ignore[method-assign]
        self.logger.addHandler(handler)
        self.workflow = SimpleNamespace(
            executor_settings=ExecutorSettings(**(QUICK | settings)),
            executor_plugin=SimpleNamespace(common_settings=common_settings),
            remote_execution_settings=SimpleNamespace(
                max_status_checks_per_second=10,
                jobname="{name}.{jobid}",
                jobscript=None,
                seconds_between_status_checks=1,
                immediate_submit=False,
            ),
            storage_settings=SimpleNamespace(shared_fs_usage=SharedFSUsage.all()),
            scheduler=self,
            main_snakefile=str(folder / "Snakefile"),
            workdir_init=str(folder),
            dag=None,
        )
        (folder / ".snakemake").mkdir(exist_ok=True)
        self.executor: Any = Plain(self.workflow, self.logger)

    # What the executor calls.

    def finish_callback(self, job: Task) -> None:
        job.ended = "done"

    def error_callback(self, job: Task) -> None:
        job.ended = "error"

    def submit_callback(self, job: Task) -> None:
        pass

    def executor_error_callback(self, error: Exception) -> None:
        self.lines.append(f"THE WATCHING THREAD DIED: {error!r}")

    # What tests call.

    def task(self, name: str, command: str, **more: Any) -> Task:
        """A job that writes what its command prints."""
        output = self.folder / f"{name}.txt"
        return Task("rule", f"{command} >{output}.part && mv {output}.part {output}", output, **more)

    def run(self, *tasks: Task) -> None:
        self.executor.run_jobs(list(tasks))

    def wait(self, *tasks: Task, seconds: float = 120.0) -> None:
        """Until all have ended."""
        wait_for(lambda: all(task.ended for task in tasks), seconds)

    def running(self, task: Task, seconds: float = 60.0) -> str:
        """Its SLURM id, once it runs."""

        def look() -> str:
            found = self.id_of(task)
            return found if found and self.lab.state(found) == "RUNNING" else ""

        return str(wait_for(look, seconds))

    def id_of(self, task: Task) -> str:
        with self.executor.lock:
            packs = [info.aux["pack"] for info in self.executor.active_jobs if info.job is task]
        return (packs[0].slurm_id or "") if packs else ""

    def said(self, *words: str) -> bool:
        """Whether one line of the log has all of these words."""
        return any(all(word in line for word in words) for line in self.lines)

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *error: object) -> None:
        began = time.monotonic()
        self.executor.cancel()
        assert time.monotonic() - began < 30, "the executor does not end"
