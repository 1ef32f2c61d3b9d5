# The beginning and the end of a run of Snakemake: targets checked, failed runs put back among what is to be made, and what
# a dry-run would take.

import atexit
import contextlib
import difflib
import re


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
    if not MAIN:
        return
    from peftbench.watch.announce import announce

    try:
        PLAN.write_tickets()
    except UserError as error:
        sys.exit(f"error: {error}")
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
    if not MAIN or workflow.executor_plugin is None:
        return
    if not os.path.isdir(f"{PLAN.results}/.failed"):
        return
    from peftbench.reruns.failed import settle, standing_files

    files = standing_files(PLAN)
    if not workflow.dryrun and not workflow.touch:
        settle(PLAN)
    elif not workflow.dryrun:
        return
    workflow.iocache.exists_local.update(dict.fromkeys(files, False))


def end_with_failures():
    """Name the runs that failed, put them back among what is to be made, and end with status 1 if there are any."""
    if not MAIN:
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
    if not MAIN or not workflow.dryrun:
        return
    if workflow.dag is None or not workflow.dag.targetjobs:
        return  # it failed before it had a graph
    from peftbench.planning.plan_cli import print_dry_run

    run = digests_of(workflow.dag.needrun_jobs(exclude_finished=False))
    print_dry_run(PLAN, digests_of(workflow.dag.jobs), run, Path.cwd())


# What tells others that this Snakemake is at work; ends with it.
AT_WORK = contextlib.ExitStack()
atexit.register(AT_WORK.close)

# Snakemake calls onsuccess in real runs alone. At its exit the graph is still there.
atexit.register(say_costs)
