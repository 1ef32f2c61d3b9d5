# The plan of all jobs, and what the rules ask of it. Everything else is in src/peftbench.

import functools
import os
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
    # Inside a job of a cluster only that job is planned, when its rule asks for it; tables and targets are made elsewhere.
    MAIN = workflow.is_main_process
    STUDIES = [PLAN.study(name) for name in PLAN.settings.names("study") if MAIN]
    DEFAULT_STUDIES = [PLAN.study(name) for name in PLAN.main.studies if MAIN]
    CLAIMS = PLAN.claims if MAIN else None
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


def later(files, *studies):
    """An input function: files of studies, such as their targets, listed when they are asked for and not before."""
    return lambda wildcards: [file for study in studies for file in files(study)]


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
    if MAIN
    and (workflow.nodes or set(workflow.global_resources) - {"_cores", "_nodes"})
}
