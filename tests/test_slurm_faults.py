"""Faults of jobs, nodes and SLURM, on a real SLURM: what the executor makes of each. No Snakemake processes here."""

import os
import time

import pytest

from slurm_lab import VARIABLE, Lab, lacking, wait_for

if lacking() and not os.environ.get(VARIABLE):
    pytest.skip(f"tests of SLURM: {lacking()}", allow_module_level=True)
from slurm_world import World


@pytest.fixture(scope="module")
def lab():
    lab = Lab().start()
    yield lab
    lab.stop()


@pytest.fixture
def world(lab, tmp_path, monkeypatch):
    made = []

    def make(**settings):
        made.append(World(lab, tmp_path, monkeypatch, **settings))
        return made[-1]

    yield make
    for one in made:
        one.__exit__()
    lab.repair()
    assert not any(one.said("DIED") for one in made), [one.lines for one in made]


def submissions(lab, task):
    return [row for row in lab.mine() if row[2].endswith("/".join(task.wildcards))]


def test_names_logs_and_resources(world, lab, tmp_path):
    one = world(account="lab", partition="gpu", cpu_partition="cpu")
    cpu = one.task("cpu", "echo $SLURM_JOB_PARTITION", runtime=7, cpus_per_task=3, mem_mb=400)
    gpu = one.task("gpu", "echo $SLURM_JOB_PARTITION $CUDA_VISIBLE_DEVICES", gpu=2, gpu_model="a100")
    bad = one.task("bad", "echo gone wrong; false")
    one.run(cpu, gpu, bad)
    one.wait(cpu, gpu, bad)
    assert (cpu.ended, gpu.ended, bad.ended) == ("done", "done", "error")
    assert (cpu.text().split(), gpu.text().split()) == (["cpu"], ["gpu", "0,1"])
    (row,) = submissions(lab, cpu)
    assert row[2] == f"rule:{tmp_path.name}/cpu"
    shown = lab.run("scontrol", "show", "job", row[0])
    assert all(part in shown for part in ("TimeLimit=00:07:00", "CPUs/Task=3", "mem=400M", "Account=lab"))
    # Of a program that fails: told once, not tried again, and its log stays.
    assert len(submissions(lab, bad)) == 1 and "its program failed" in bad.said
    logs = sorted(
        str(path.relative_to(tmp_path / ".snakemake/slurm_logs")) for path in tmp_path.rglob("*.log")
    )
    number = submissions(lab, bad)[0][0]
    assert logs == [f"rule/{tmp_path.name}/bad/{number}.exit.log", f"rule/{tmp_path.name}/bad/{number}.log"]


def test_the_time_limit_is_raised_and_only_it(world, lab):
    """A minute is the shortest limit. The second start may take two, and goes on where the first stopped."""
    one = world()
    kept = one.folder / "kept"
    script = one.folder / "long.sh"
    script.write_text(
        f"trap 'echo saved >{kept}; exit 75' TERM\ntest -e {kept} && exec cat {kept}\nwhile true; do sleep 0.2; done\n"
    )
    task = one.task("time", f"bash {script}", runtime=1)
    one.run(task)
    one.wait(task, seconds=200)
    assert task.ended == "done" and task.text() == "saved\n"
    first, second = submissions(lab, task)
    limits = [lab.run("squeue", "--states=all", "-h", "-o", "%l %m", "-j", row[0]) for row in (first, second)]
    assert [first[1], second[1], *limits] == ["TIMEOUT", "COMPLETED", "1:00 200M", "2:00 200M"]


def test_lack_of_memory_raises_the_memory_and_only_it(world, lab):
    one = world()
    hungry = "python3 -c 'import time; b = str(1) * (300 << 20); time.sleep(4); print(len(b))'"
    task = one.task("memory", hungry, mem_mb=150, runtime=5)
    one.run(task)
    one.wait(task)
    rows = submissions(lab, task)
    limits = [lab.run("squeue", "--states=all", "-h", "-o", "%m %l", "-j", row[0]) for row in rows]
    assert limits == ["150M 5:00", "225M 5:00", "337M 5:00"], one.lines
    assert task.ended == "done" and one.said("it needed more memory", "2 of 3")


def test_memory_that_never_suffices_ends_in_an_error(world, lab):
    one = world(memory_retries=0)
    task = one.task("never", "python3 -c 'import time; b = str(1) * (300 << 20); time.sleep(9)'", mem_mb=150)
    one.run(task)
    one.wait(task)
    assert task.ended == "error" and "it needed more memory" in task.said and len(submissions(lab, task)) == 1


def test_a_job_that_stops_to_go_on_later_runs_again(world, lab):
    one = world()
    task = one.task(
        "later",
        f"test -e {one.folder}/seen || (touch {one.folder}/seen; "
        "echo 'returned non-zero exit status 75.' >&2; exit 75)",
    )
    one.run(task)
    one.wait(task)
    assert task.ended == "done" and len(submissions(lab, task)) == 2


def test_a_cancelled_job_runs_again_but_not_for_ever(world, lab):
    one = world(cancelled_retries=1)
    task = one.task("cancelled", "sleep 60")
    one.run(task)
    first = one.running(task)
    lab.run("scancel", first)
    wait_for(lambda: one.id_of(task) not in ("", first))
    lab.run("scancel", one.running(task))
    one.wait(task)
    assert task.ended == "error" and "somebody cancelled it, 2 times" in task.said
    assert [row[1] for row in submissions(lab, task)] == ["CANCELLED", "CANCELLED"]


def test_a_requeued_job_is_waited_for(world, lab):
    one = world()
    task = one.task("requeued", "sleep 3; echo restart ${SLURM_RESTART_COUNT:-0}")
    one.run(task)
    lab.run("scontrol", "requeue", one.running(task))
    one.wait(task)
    assert task.ended == "done" and task.text() == "restart 1\n" and len(submissions(lab, task)) == 1


@pytest.mark.parametrize(("partition", "starts"), [("cancel", 2), ("requeue", 1)])
def test_a_preempted_job_runs_again(world, lab, partition, starts):
    """Whether SLURM requeues it itself or leaves it ended."""
    one = world()
    task = one.task(
        "preempted",
        f"test -e {one.folder}/seen || (touch {one.folder}/seen; exec sleep 60)",
        slurm_partition=partition,
        gpu=2,
        slurm_extra="--nodelist=g1",
    )
    one.run(task)
    one.running(task)
    wait_for((one.folder / "seen").exists)
    strong = lab.run(
        "sbatch", "--parsable", "-p", "gpu", "--gpus=2", "-w", "g1", "-o", "/dev/null", "--wrap", "sleep 3"
    )
    one.wait(task)
    assert task.ended == "done" and len(submissions(lab, task)) == starts, one.lines
    assert lab.state(strong) == "COMPLETED"
    assert one.said("it was preempted", "1 of 20") == (partition == "cancel")


def test_a_lost_node(world, lab):
    """Power goes: the job runs again elsewhere, and that node gets none for a while."""
    one = world()
    began = one.folder / "began"
    command = f"(test -e {began} || (touch {began}; exec sleep 60)) && echo $SLURMD_NODENAME"
    gone = one.task("gone", command, slurm_partition="gpu", slurm_extra="--no-requeue -w g1")
    one.run(gone)
    wait_for(began.exists)
    gone.resources["slurm_extra"] = "--no-requeue"
    lab.kill_node("g1")
    one.wait(gone)
    assert gone.ended == "done" and gone.text() == "g2\n" and one.said("its node failed", "1 of 5")
    assert one.executor._failed_nodes == {"g1"}
    last = lab.run("scontrol", "show", "job", submissions(lab, gone)[-1][0])
    assert "ExcNodeList=g1" in last


def test_only_the_daemon_of_a_node_dies(world, lab):
    """SLURM queues the job anew while its first copy runs on: it is one job to us, and no later submission suffers."""
    one = world()
    began = one.folder / "began"
    command = f"test -e {began} && sleep 1 || (touch {began}; sleep 30); echo $SLURMD_NODENAME"
    task = one.task("twice", command, slurm_partition="gpu")
    one.run(task)
    wait_for(began.exists)
    first = one.running(task)
    node = lab.run("squeue", "-h", "-o", "%N", "-j", first)
    lab.kill_slurmd(node)
    wait_for(lambda: lab.nodes()[node].startswith("down"), 60)
    other = one.task("other", "echo ok", slurm_partition="gpu")
    one.run(other)
    one.wait(task, other)
    assert (task.ended, other.ended) == ("done", "done")
    assert len(submissions(lab, task)) == 1 and lab.mine()[-1][2].endswith("other")
    assert "None" not in " ".join(one.executor._failed_nodes)


def test_slurm_is_away_while_jobs_run_and_are_submitted(world, lab):
    """Its controller ends, for longer than its programs wait: jobs run on, none is dropped, submissions wait."""
    one = world()
    running = one.task("running", "sleep 10; echo ok")
    one.run(running)
    one.running(running)
    lab.stop_daemon("slurmctld")
    later = one.task("later", "echo ok")
    one.run(later)
    wait_for(lambda: one.said("SLURM does not answer: 1 SLURM jobs stay watched"))
    wait_for(lambda: one.said("SLURM does not take jobs now"), 30)
    lab.start_controller()
    one.wait(running, later)
    assert (running.ended, later.ended) == ("done", "done") and one.said("SLURM answers again")
    assert len(submissions(lab, running)) == len(submissions(lab, later)) == 1


def test_a_restart_of_the_controller_is_not_noticed(world, lab):
    one = world()
    task = one.task("restart", "sleep 4; echo ok")
    one.run(task)
    one.running(task)
    lab.stop_daemon("slurmctld")
    lab.start_controller()
    one.wait(task)
    assert task.ended == "done" and len(submissions(lab, task)) == 1


def test_what_slurm_does_not_want_is_said_at_once(world, tmp_path):
    one = world()
    tasks = [
        one.task("partition", "true", slurm_partition="nowhere"),
        one.task("memory", "true", mem_mb=10**7),
    ]
    began = time.monotonic()
    one.run(*tasks)
    one.wait(*tasks)
    assert time.monotonic() - began < 20
    assert [task.ended for task in tasks] == ["error", "error"]
    assert "invalid partition" in tasks[0].said.lower()
    assert f"SLURM does not take rule:{tmp_path.name}/memory" in tasks[1].said


def test_more_time_than_a_partition_allows_is_not_asked_for(world, lab):
    """SLURM would take such a job and never start it."""
    one = world()
    task = one.task("short", "echo ok", slurm_partition="short", runtime=40)
    one.run(task)
    one.wait(task)
    assert lab.run("squeue", "--states=all", "-h", "-o", "%l", "-j", submissions(lab, task)[0][0]) == "30:00"


def test_small_jobs_share_a_slurm_job(world, lab):
    """One fails, which is told of it alone; a job that is no small one goes by itself."""
    one = world(batch_minutes=1)
    small = {"slurm_batch": "train tiny", "slurm_batch_seconds": 10, "runtime": 2}
    tasks = [one.task(f"small{i}", "false" if i == 3 else "echo $SLURM_JOB_ID", **small) for i in range(8)]
    alone = one.task("alone", "echo $SLURM_JOB_ID")
    one.run(*tasks[:5], alone)
    one.run(*tasks[5:])
    one.wait(*tasks, alone)
    assert [task.ended for task in tasks] == ["done"] * 3 + ["error"] + ["done"] * 4
    together = [task.text() for task in tasks if task.text()]
    assert len(set(together[:3])) == 1 and len(set(together)) == 2 and alone.text() not in together
    names = [row[2] for row in lab.mine() if "train/tiny" in row[2]]
    assert sorted(names) == ["train/tiny:4-jobs"] * 2


def test_what_a_shared_job_has_made_is_reported_before_it_ends(world, lab):
    """What needs it goes on; the others stay watched, and are told apart when the SLURM job fails."""
    one = world(batch_minutes=1)
    small = {"slurm_batch": "kind", "slurm_batch_seconds": 10, "runtime": 2}
    first = one.task("first", "echo ok", **small)
    second = one.task("second", f"while test ! -e {one.folder}/go; do sleep 0.2; done; echo ok", **small)
    third = one.task("third", "false", **small)
    one.run(first, second, third)
    one.wait(first)
    assert (second.ended, third.ended) == ("", "") and lab.state(one.id_of(second)) == "RUNNING"
    (one.folder / "go").touch()
    one.wait(second, third)
    assert (first.ended, second.ended, third.ended) == ("done", "done", "error")


def test_of_a_shared_job_only_what_is_not_done_runs_again(world, lab):
    one = world(batch_minutes=1)
    small = {"slurm_batch": "kind", "slurm_batch_seconds": 30, "runtime": 2}
    first = one.task("first", f"echo x >>{one.folder}/count; echo ok", **small)
    second = one.task(
        "second", f"test -e {one.folder}/seen || (touch {one.folder}/seen; exec sleep 60)", **small
    )
    one.run(first, second)
    wait_for((one.folder / "seen").exists)
    lab.run("scancel", one.running(second))
    one.wait(first, second)
    assert (first.ended, second.ended) == ("done", "done")
    assert (one.folder / "count").read_text() == "x\n"


def test_a_killed_master_finds_its_jobs_again(world, lab, tmp_path, monkeypatch):
    """Running, waiting and shared jobs are attached to, by what they make; others are submitted."""
    one = world(batch_minutes=1)
    small = {"slurm_batch": "kind", "slurm_batch_seconds": 30, "runtime": 2}

    def tasks(of):
        return [
            of.task("run", "sleep 5; echo $SLURM_JOB_ID"),
            of.task("wait", "echo $SLURM_JOB_ID", slurm_extra="--begin=now+6"),
            of.task("a", "sleep 2; echo $SLURM_JOB_ID", **small),
            of.task("b", "sleep 2; echo $SLURM_JOB_ID", **small),
        ]

    first = tasks(one)
    one.run(*first)
    wait_for(lambda: all(one.id_of(task) for task in first))
    ids = {one.id_of(task) for task in first}
    one.executor.wait = False  # as if it were killed: it watches no more, and cancels nothing
    one.executor.wait_thread.join()
    one.executor.active_jobs.clear()
    before = len(lab.mine())

    two = world(batch_minutes=1)
    again, more = tasks(two), two.task("more", "echo $SLURM_JOB_ID")
    two.run(*again, more)
    two.wait(*again, more)
    assert all(task.ended == "done" for task in [*again, more])
    assert {task.text().strip() for task in again} == ids and len(ids) == 3
    assert len(lab.mine()) == before + 1 and two.said("attached to it")


def test_a_job_that_slurm_has_forgotten(world, lab, monkeypatch):
    """Neither squeue nor sacct knows it: its own note of its status counts; without one it is lost and runs again."""
    one = world()
    seen = one.folder / "seen"
    noted = one.task("noted", "echo ok; sleep 1")
    lost = one.task("lost", f"test -e {seen} || (touch {seen}; exec sleep 60)")
    forgotten = set()
    squeue = one.executor._squeue
    monkeypatch.setattr(
        one.executor,
        "_squeue",
        lambda ids: {i: row for i, row in (squeue(ids) or {}).items() if i not in forgotten},
    )
    one.run(noted, lost)
    wait_for(seen.exists)
    forgotten |= {one.running(noted), one.running(lost)}
    one.wait(noted, lost)
    assert (noted.ended, lost.ended) == ("done", "done")
    assert len(submissions(lab, noted)) == 1 and len(submissions(lab, lost)) == 2
    assert submissions(lab, lost)[0][1] == "CANCELLED" and one.said("SLURM knows nothing of it any more")


def test_several_gpus_and_several_nodes(world, lab):
    """One node with two GPUs; two nodes with two each: one task a node, GPUs counted by node."""
    one = world(partition="gpu")
    node = one.task("node", "echo $SLURM_NNODES $CUDA_VISIBLE_DEVICES", gpu=2, nodes=1)
    nodes = one.task(
        "nodes", "srun bash -c 'echo $SLURM_NODEID $CUDA_VISIBLE_DEVICES'", gpu=4, nodes=2, cpus_per_task=2
    )
    cpus = one.task("cpus", "srun bash -c 'echo $SLURM_NODEID'", nodes=2, slurm_partition="cpu")
    one.run(node, nodes, cpus)
    one.wait(node, nodes, cpus)
    assert [task.ended for task in (node, nodes, cpus)] == ["done"] * 3
    assert node.text() == "1 0,1\n"
    assert sorted(nodes.text().splitlines()) == ["0 0,1", "1 0,1"]
    assert sorted(cpus.text().split()) == ["0", "1"]


def test_the_end_of_the_run_ends_its_jobs_and_is_quick(world, lab):
    one = world(max_seconds_between_status_checks=60, init_seconds_before_status_checks=60)
    task = one.task("ended", "sleep 60")
    one.run(task)
    first = one.running(task)
    began = time.monotonic()
    one.executor.cancel()
    assert time.monotonic() - began < 10
    wait_for(lambda: lab.state(first) == "CANCELLED")
