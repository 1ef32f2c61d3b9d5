# The plan of all jobs, and what the rules ask of it. Everything else is in src/peftbench.

import atexit
import contextlib
import difflib
import functools
import os
import re
import shlex
import sys
from pathlib import Path

from peftbench.config import Settings, read_yaml
from peftbench.errors import UserError
from peftbench.graph import Plan
from peftbench.warm import may_use_gpu

ROOT = Path(workflow.basedir)
try:
    read_yaml(ROOT / "config/config.yaml")  # names the line of a mistake
except UserError as error:
    sys.exit(f"error: {error}")


configfile: ROOT / "config/config.yaml"


try:
    PLAN = Plan(Settings(config, ROOT))
    STUDIES = [PLAN.study(name) for name in PLAN.settings.names("study")]
except UserError as error:
    sys.exit(f"error: {error}")

# Jobs run with the interpreter that runs Snakemake, and find the scripts wherever the working directory is.
SEARCH = os.pathsep.join(
    [f"{workflow.basedir}/workflow/scripts", os.path.dirname(sys.executable)]
)
shell.prefix(f"set -euo pipefail; PATH={shlex.quote(SEARCH)}:$PATH; ")


wildcard_constraints:
    origin=r"[^/]+",
    model=r"[^/]+",
    dataset=r"[^/]+",
    method=r"[^/.]+",
    size=r"[0-9]+|full",
    run=r"[^/]+-[0-9a-f]{16}",
    predictions=r"predictions-[0-9a-f]{16}",
    digest=r"[0-9a-f]{16}",


def job_of(wildcards):
    """The planned job that makes the file asked for."""
    try:
        return PLAN.job(wildcards.digest)
    except UserError as error:
        raise WorkflowError(error) from None


def records_of(wildcards):
    """Records of the job's inputs; rules wrap them in ancient(), as existence decides, not times."""
    retry_left_overs()
    return [f"{PLAN.results}/{job.record}" for job in job_of(wildcards).inputs.values()]


def ticket_of(wildcards):
    """The file with all that the job is told; the one param of its rule. Its name holds the job's digest."""
    return PLAN.ticket_file(job_of(wildcards))


def execution_of(wildcards):
    """How the job runs. A resource, because Snakemake does not track those: no change of it reruns anything."""
    return PLAN.execution(job_of(wildcards))


def execution_of_training(wildcards):
    """The same of a training, with the micro-batch that fits its GPU; on a cluster the job's own node decides that."""
    job, execution = job_of(wildcards), PLAN.main.execution
    if execution.micro_batch or not may_use_gpu(execution.device):
        return PLAN.execution(job)
    return PLAN.execution(job, requests().micro_batch(job))


def asked(name):
    """One of the resources that a job asks a cluster for, from the estimate of that job, made when it is needed."""

    def resource(wildcards, attempt):
        try:
            return requests().of(job_of(wildcards), attempt)[name]
        except UserError as error:
            raise WorkflowError(error) from None

    return resource


@functools.cache
def requests():
    """Estimates of jobs; what they are made from is read with the first."""
    from peftbench.planning.resources import Requests

    return Requests(PLAN, Path.cwd())


# Of all rules that may run on a cluster; none inside an allocation, and on one machine without limits, where nobody counts
# them. As resources they are part of no result: no change of them reruns anything.
ASKED = {
    name: asked(name)
    for name in (
        "gpu",
        "nodes",
        "runtime",
        "mem_mb",
        "cpus_per_task",
        "slurm_batch",
        "slurm_batch_seconds",
    )
    if workflow.is_main_process
    and (workflow.nodes or set(workflow.global_resources) - {"_cores", "_nodes"})
}


def check_targets(arguments):
    """Name the study that a mistyped target is nearest to; Snakemake knows the targets only after parsing."""
    known = {study.name for study in STUDIES}
    for word in arguments:
        near = difflib.get_close_matches(word, known, n=1, cutoff=0.8)
        if (
            near
            and word not in known
            and word not in vars(rules)
            and not os.path.exists(word)
        ):
            sys.exit(f"error: there is no study {word!r}; did you mean {near[0]!r}?")
        found = re.search(r"-([0-9a-f]{16})/record\.json$", word)
        if found and not os.path.exists(word):
            try:
                PLAN.job(found[1])
            except UserError as error:
                sys.exit(f"error: {error}")


def begin():
    """Write what each job is told, and what this Snakemake is going to run, for 'peftbench watch'."""
    try:
        PLAN.write_tickets()
    except UserError as error:
        sys.exit(f"error: {error}")
    if workflow.is_main_process:
        from peftbench.watch.announce import announce

        needrun = workflow.dag.needrun_jobs(exclude_finished=False)
        logs = {
            Path(job.params.ticket).stem: str(job.log[0])
            for job in needrun
            if not job.is_norun
        }
        AT_WORK.enter_context(announce(PLAN, logs, config))


@functools.cache
def retry_left_overs():
    """Put the failed runs of a Snakemake that was killed back among what is to be made; the graph is not yet judged.

    A dry-run changes no file: it takes their records for missing, as they will be.
    """
    if not os.path.isdir(f"{PLAN.results}/.failed") or workflow.executor_plugin is None:
        return
    from peftbench.reruns.failed import settle, standing_files

    files = standing_files(PLAN)
    if workflow.is_main_process and not workflow.dryrun and not workflow.touch:
        settle(PLAN)
    elif not workflow.dryrun:
        return
    workflow.iocache.exists_local.update(dict.fromkeys(files, False))


def end_with_failures():
    """Name the runs that failed, put them back among what is to be made, and end with status 1 if there are any."""
    if not workflow.is_main_process:
        return
    AT_WORK.close()
    from peftbench.reruns.failed import report, settle

    lines = report(PLAN, digests_of(workflow.dag.jobs))
    settle(PLAN)
    if lines:
        print("", *lines, sep="\n", file=sys.stderr, flush=True)
        sys.exit(1)


def digests_of(jobs):
    """Digests of Snakemake's jobs, from the names of their tickets; targets have none."""
    tickets = [job.params.get("ticket") for job in jobs if not job.is_norun]
    return {Path(ticket).stem for ticket in tickets if ticket}


def say_costs():
    """What the jobs of a dry-run will take, after all that Snakemake says; nothing in other runs."""
    if not workflow.dryrun or workflow.dag is None or not workflow.dag.targetjobs:
        return  # no dry-run, or one that failed before it had a graph
    from peftbench.planning.plan_cli import print_dry_run

    run = digests_of(workflow.dag.needrun_jobs(exclude_finished=False))
    print_dry_run(PLAN, digests_of(workflow.dag.jobs), run, Path.cwd())


# What tells others that this Snakemake is at work; ends with it.
AT_WORK = contextlib.ExitStack()
atexit.register(AT_WORK.close)

# Snakemake calls onsuccess in real runs alone. At its exit the graph is still there.
atexit.register(say_costs)
