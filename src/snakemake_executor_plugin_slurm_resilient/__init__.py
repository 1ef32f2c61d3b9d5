"""A Snakemake executor for SLURM that comes through what happens on clusters: ``--executor slurm-resilient``.

It submits as the stock executor (snakemake-executor-plugin-slurm) does, and differs in what follows: see ``executor``.
The stock plugin is loaded when a run asks for it, not when Snakemake starts: its import takes longer than all of
Snakemake's own and calls SLURM.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Optional

from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """Options of the command line and of profiles, each as ``slurm-resilient-<name>``.

    Snakemake reads the types of fields, and knows ``Optional`` but not ``| None``.
    """

    account: Optional[str] = _setting(None, "Account of all jobs that name none (resource slurm_account).")
    partition: Optional[str] = _setting(
        None, "Partition of all jobs that name none (resource slurm_partition); several with commas."
    )
    cpu_partition: Optional[str] = _setting(
        None, "Partition of jobs without a GPU, where it is not that of the others."
    )
    qos: Optional[str] = _setting(None, "Quality of service of all jobs.")
    reservation: Optional[str] = _setting(None, "Reservation of all jobs.")
    partition_config: Optional[Path] = _setting(
        None, "Limits of partitions (YAML), to choose the partition of each job by."
    )
    logdir: Optional[Path] = _setting(
        None, "Folder of the jobs' logs; relative to the working directory. Default: .snakemake/slurm_logs."
    )
    keep_successful_logs: bool = _setting(False, "Keep the logs of jobs that ended well too.")
    delete_logfiles_older_than: int = _setting(10, "Days after which logs are removed; 0: never.")
    status_query: str = _setting(
        "squeue",
        "Command that is asked first about jobs: squeue or sacct; the other one knows what it does not.",
    )
    init_seconds_before_status_checks: int = _setting(5, "Seconds until the first look at jobs.")
    max_seconds_between_status_checks: int = _setting(
        60, "Longest time between two looks; it grows from the first while nothing happens."
    )
    lost_after: int = _setting(
        600,
        "Seconds after which a job that neither squeue nor sacct knows, and that left no status, is lost.",
    )
    sbatch_patience: int = _setting(
        3600,
        "Seconds for which a submission is tried again while SLURM does not answer or takes no more jobs.",
    )
    timeout_retries: int = _setting(
        3, "Times that a job is submitted again, with more time, after its time limit."
    )
    memory_retries: int = _setting(
        3, "Times that a job is submitted again, with more memory, after it ran out of it."
    )
    preempted_retries: int = _setting(
        20, "Times that a job is submitted again after it was preempted, or ended itself to go on later."
    )
    node_retries: int = _setting(
        5, "Times that a job is submitted again after its node failed, or it was lost."
    )
    cancelled_retries: int = _setting(2, "Times that a job is submitted again after somebody cancelled it.")
    time_growth: float = _setting(2.0, "Factor of the time limit after each time limit.")
    memory_growth: float = _setting(1.5, "Factor of the memory after each lack of it.")
    batch_minutes: float = _setting(
        10.0,
        "Small jobs (resources slurm_batch, slurm_batch_seconds) share a SLURM job of about so many minutes.",
    )
    batch_wait: float = _setting(
        10.0, "Seconds for which small jobs wait for others to share a SLURM job with."
    )
    requeue: bool = _setting(False, "Submit with --requeue, whatever the cluster's default.")
    no_requeue: bool = _setting(False, "Submit with --no-requeue, whatever the cluster's default.")
    exclude_failed_nodes: Optional[str] = _setting(None, "Nodes that no job shall go to, with commas.")

    # What the stock executor asks for besides. Arrays and reports are none of this one's.
    array_jobs: ClassVar[str | None] = None
    array_limit: ClassVar[int] = 1000
    efficiency_report: ClassVar[bool] = False
    jobname_prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        from snakemake_interface_common.exceptions import WorkflowError

        if self.requeue and self.no_requeue:
            raise WorkflowError("slurm-resilient: requeue and no-requeue exclude each other")
        if self.status_query not in ("squeue", "sacct"):
            raise WorkflowError(
                f"slurm-resilient: status-query is squeue or sacct, not {self.status_query!r}"
            )
        if self.time_growth < 1.0 or self.memory_growth < 1.0:
            raise WorkflowError("slurm-resilient: time-growth and memory-growth are 1 or more")


common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=False,
    auto_deploy_default_storage_provider=False,
    spawned_jobs_assume_shared_fs=True,
)


class Executor(RemoteExecutor):
    """Stands for ``executor.SlurmExecutor`` until a run asks for it."""

    def __new__(cls, workflow: Any, logger: Any) -> Any:
        """The real executor."""
        from snakemake_executor_plugin_slurm_resilient.stock import find_stock

        find_stock()
        from snakemake_executor_plugin_slurm_resilient.executor import SlurmExecutor

        return SlurmExecutor(workflow, logger)
