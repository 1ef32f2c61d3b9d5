"""The SLURM executor's parts that need no SLURM: states, names, batches, submissions that fail, the profile."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from peftbench.planning import resources
from snakemake_executor_plugin_slurm_resilient import ExecutorSettings, client, packs, states
from snakemake_executor_plugin_slurm_resilient.packs import Asked, Pack, View, Waiting
from snakemake_executor_plugin_slurm_resilient.states import Cause, Row

ROOT = Path(__file__).parent.parent


def job(name="train", outputs=("results/x-1/record.json",), threads=1, **asked):
    return SimpleNamespace(
        name=name,
        wildcards=["tiny llava", "vizwiz", "0123456789abcdef"],
        output=list(outputs),
        resources=Asked({"runtime": 10, "mem_mb": 1000} | asked),
        threads=threads,
        is_group=lambda: False,
    )


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("CANCELLED by 0", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("cancelled by 1000", "CANCELLED"),
        ("RUNNING", "RUNNING"),
        ("", ""),
    ],
)
def test_state_words(said, meant):
    assert states.word(said) == meant


def test_rows_of_queries():
    text = "12|PENDING|Priority|\n13|CANCELLED by 0|None|g1\n13|RUNNING|None|g2\n\nnonsense\n14|UNKNOWN\n"
    rows = states.rows(text)
    assert rows == {
        "12": Row("PENDING", "Priority"),
        "13": Row("RUNNING", "None", "g2"),
        "14": Row("UNKNOWN"),
    }
    assert [row.ended for row in rows.values()] == [False] * 3 and not rows["14"].known


@pytest.mark.parametrize(
    ("nodes", "excluded"),
    [
        ("g1", "g1"),
        ("g[1-2,5]", "g[1-2,5]"),
        ("None assigned", ""),
        ("(null)", ""),
        ("", ""),
        ("a.b-c,g1", "a.b-c,g1"),
    ],
)
def test_only_names_of_nodes_are_excluded(nodes, excluded):
    """The stock executor submits with ``--exclude=None assigned`` after a node failed under a requeued job."""
    assert states.node_names(Row("NODE_FAIL", nodes=nodes)) == excluded


OOM = "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.batch. Some of your processes may have been killed"


@pytest.mark.parametrize(
    ("state", "log", "steps", "cause"),
    [
        ("COMPLETED", OOM, "", Cause.DONE),
        ("FAILED", "", "", Cause.PROGRAM),
        ("FAILED", "torch.OutOfMemoryError: CUDA out of memory", "", Cause.PROGRAM),
        ("FAILED", "text\n" + OOM, "", Cause.MEMORY),
        ("FAILED", "srun: error: c1: task 0: Out Of Memory", "", Cause.MEMORY),
        ("CANCELLED", "slurmstepd-c1: error: Exceeded job memory limit", "", Cause.MEMORY),
        ("FAILED", "", "FAILED\nOUT_OF_MEMORY\n", Cause.MEMORY),
        ("OUT_OF_MEMORY", "", "", Cause.MEMORY),
        ("FAILED", "Command 'x' returned non-zero exit status 75.", "", Cause.GO_ON),
        ("FAILED", "Command 'x' returned non-zero exit status 1.", "", Cause.PROGRAM),
        ("FAILED", "*** JOB 7 ON c1 CANCELLED AT now DUE TO TIME LIMIT ***", "", Cause.TIME),
        ("CANCELLED", "*** JOB 7 CANCELLED AT now DUE TO PREEMPTION ***", "", Cause.PREEMPTED),
        ("TIMEOUT", "", "", Cause.TIME),
        ("DEADLINE", "", "", Cause.TIME),
        ("PREEMPTED", "", "", Cause.PREEMPTED),
        ("NODE_FAIL", "", "", Cause.NODE),
        ("BOOT_FAIL", "", "", Cause.NODE),
        ("CANCELLED", "", "", Cause.CANCELLED),
    ],
)
def test_causes(state, log, steps, cause):
    assert states.cause_of(state, log, steps) is cause


def test_only_the_last_start_of_a_requeued_job_counts(tmp_path):
    log = tmp_path / "7.log"
    log.write_text(f"{states.START} 7\n{OOM}\n{states.START} 7\nall well\n")
    assert "oom" not in states.last_log(log) and "all well" in states.last_log(log)
    assert states.last_log(tmp_path / "none") == ""


def test_names_and_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = job()
    assert packs.name_of(one) == "train:tiny_llava/vizwiz/0123456789abcdef"
    assert Pack([one]).folder == "train/tiny_llava/vizwiz/0123456789abcdef"
    # By where the outputs lie, whatever the working directory: results that are shared are the same job.
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/results").symlink_to(tmp_path / "results")
    key = packs.key_of(one)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert packs.key_of(one) == key
    assert packs.key_of(job(outputs=["results/x-2/record.json"])) != key
    assert packs.members(f"snakemake:{key},{key}") == [key, key] and packs.members("of somebody else") == []


def test_each_cause_raises_what_was_short():
    pack = Pack([job(runtime=10, mem_mb=1000)])
    for cause in (
        Cause.TIME,
        Cause.MEMORY,
        Cause.PREEMPTED,
        Cause.NODE,
        Cause.CANCELLED,
        Cause.LOST,
        Cause.TIME,
    ):
        pack.grow(cause, 2.0, 1.5)
    asked = View(pack, None).resources
    assert (asked["runtime"], asked["mem_mb"]) == (40, 1500) and not pack.capped
    assert View(pack, 30).resources["runtime"] == 30 and pack.capped


def test_resources_of_several_nodes_and_of_shared_jobs():
    several = View(Pack([job(nodes=2, gpu=8, gpu_model="a100")]), None)
    assert several.resources["gres"] == "gpu:a100:4" and "gpu" not in several.resources
    assert several.extra == " --ntasks-per-node=1"
    assert View(Pack([job(nodes=2)]), None).resources["tasks"] == 2
    assert View(Pack([job(nodes=1, gpu=0, gpu_model="a100")]), None).resources.keys() == {
        "runtime",
        "mem_mb",
        "nodes",
    }
    small = [job(slurm_batch="k", slurm_batch_seconds=60, mem_mb=m, gpu=1) for m in (500, 2000, 900)]
    asked = View(Pack(small), None).resources
    assert (asked["mem_mb"], asked["gpu"], asked["runtime"]) == (2000, 1, 10 + 9)


def test_small_jobs_wait_for_each_other_by_kind():
    waiting = Waiting(most_seconds=80, wait=0.05)
    one, two = (job(slurm_batch="a", slurm_batch_seconds=40) for _ in range(2))
    other, alone = job(slurm_batch="b", slurm_batch_seconds=1), job(slurm_batch="")
    assert waiting.add([one, alone, other]) == [[alone]] and waiting.due() == []
    assert waiting.add([two]) == [[one, two]]
    threading.Event().wait(0.06)
    assert waiting.due() == [[other]] and waiting.due() == []


def test_small_jobs_are_shared_out_evenly():
    tasks = [job(slurm_batch="a", slurm_batch_seconds=10) for _ in range(8)]
    assert [len(part) for part in Waiting(most_seconds=60, wait=9).add(tasks)] == [4, 4]
    assert [len(part) for part in Waiting(most_seconds=80, wait=9).add(tasks)] == [8]
    assert [len(part) for part in Waiting(most_seconds=0, wait=9).add(tasks)] == [1] * 8
    uneven = [job(slurm_batch="a", slurm_batch_seconds=s) for s in (100, 1, 1, 1, 1, 1)]
    assert [len(part) for part in Waiting(most_seconds=60, wait=9).add(uneven)] == [1, 5]


def test_small_jobs_do_not_wait_for_ever_while_others_come():
    waiting = Waiting(most_seconds=1e9, wait=0.05)
    began, found = time.monotonic(), []
    while not found and time.monotonic() - began < 5:
        waiting.add([job(slurm_batch="a", slurm_batch_seconds=1)])
        threading.Event().wait(0.02)
        found = waiting.due()
    assert found and 0.2 <= time.monotonic() - began < 2


def sbatch(tmp_path, monkeypatch, *answers):
    """An sbatch that says one thing after another."""
    for number, (status, text) in enumerate(answers):
        (tmp_path / f"{number}").write_text(
            f"{'echo 7' if status == 0 else f'echo {text!r} >&2'}; exit {status}\n"
        )
    (tmp_path / "sbatch").write_text(
        f"#!/bin/sh\ncd {tmp_path}\nn=$(cat n 2>/dev/null || echo 0)\necho $((n+1)) >n\ncat >script\n. ./$n\n"
    )
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    return tmp_path / "n"


AWAY = (1, "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)")
FULL = (1, "sbatch: error: QOSMaxSubmitJobPerUserLimit")


def test_submissions_wait_while_slurm_is_away_or_full(tmp_path, monkeypatch):
    count = sbatch(tmp_path, monkeypatch, AWAY, FULL, AWAY, (0, ""))
    said = []
    out = client.submit("sbatch x", "#!/bin/sh\n", 60, threading.Event(), lambda *words: said.append(words))
    assert out == "7\n" and count.read_text() == "4\n" and len(said) == 3
    assert (tmp_path / "script").read_text() == "#!/bin/sh\n"


def test_a_submission_that_was_taken_after_all_is_not_repeated(tmp_path, monkeypatch):
    count = sbatch(tmp_path, monkeypatch, (1, "sbatch: error: Socket timed out on send/recv operation"))
    assert client.submit("sbatch x", "", 60, threading.Event(), lambda *words: "42") == "42"
    assert count.read_text() == "1\n"


@pytest.mark.parametrize(
    ("answer", "tries"),
    [((1, "sbatch: error: invalid partition specified: x"), 1), ((1, "odd"), client.UNKNOWN_TRIES)],
)
def test_submissions_that_slurm_does_not_want(tmp_path, monkeypatch, answer, tries):
    count = sbatch(tmp_path, monkeypatch, *[answer] * 9)
    with pytest.raises(client.Refused, match=answer[1]):
        client.submit("sbatch x", "", 60, threading.Event(), lambda *words: None)
    assert count.read_text() == f"{tries}\n"


def test_submissions_end_with_snakemake_and_with_patience(tmp_path, monkeypatch):
    sbatch(tmp_path, monkeypatch, *[AWAY] * 9)
    stop = threading.Event()
    stop.set()
    with pytest.raises(client.Stopped):
        client.submit("sbatch x", "", 60, stop, lambda *words: None)
    with pytest.raises(client.Refused, match="Unable to contact"):
        client.submit("sbatch x", "", 0, threading.Event(), lambda *words: None)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("1-12:00:00", 2160), ("30:00", 30), ("2:00:00", 120), ("infinite", None), ("n/a", None)],
)
def test_time_limits_of_partitions(text, minutes):
    assert client.minutes(text) == minutes


def test_a_query_that_fails_is_no_answer(tmp_path, monkeypatch):
    (tmp_path / "squeue").write_text("#!/bin/sh\necho '7|RUNNING'\nexit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert client.ask("squeue") is None and client.ask("no-such-program") is None


def test_the_profile_names_what_there_is_and_no_resources():
    text = (ROOT / "profiles/slurm/profile.yaml").read_text()
    profile = yaml.safe_load(text)
    known = {f"slurm-resilient-{name.replace('_', '-')}" for name in ExecutorSettings.__dataclass_fields__}
    assert {key for key in profile if key.startswith("slurm-")} <= known
    assert not {"default-resources", "set-resources"} & profile.keys()
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line and not line.startswith("#"):
            above = lines[number - 1]
            assert above.startswith("#") or above.startswith("slurm-resilient"), f"no reason above {line!r}"


def test_starting_snakemake_does_not_import_the_stock_executor():
    code = """
import sys, snakemake.cli
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry
assert ExecutorPluginRegistry().is_installed("slurm-resilient")
assert "--slurm-resilient-account" in snakemake.cli.get_argument_parser().format_help()
print({"pandas", "snakemake_executor_plugin_slurm"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_rules_ask_for_all_that_is_estimated():
    """The names in ``common.smk``, which must not import planning, are those that planning has."""
    text = (ROOT / "workflow/rules/common.smk").read_text()
    block = text[text.index("ASKED = {") : text.index("if MAIN\n")]
    assert tuple(yaml.safe_load(f"[{block[block.index('in (') + 4 : block.rindex(')')]}]")) == resources.NAMES
