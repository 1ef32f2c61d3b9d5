"""The warm worker, with servers that import torch alone (or nothing), each test with a folder of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from peftbench import warm
from peftbench.spec import Execution

SCRIPT = """
import os, sys, time
from pathlib import Path
from peftbench.spec import Execution
from peftbench.warm import run_in_worker
status = run_in_worker(Execution(device="cpu"))
if status is not None:
    sys.exit(status)
print("warm" if "warm_server" in open("/proc/self/cmdline").read() else "alone", file=sys.stderr, flush=True)
"""


@pytest.fixture
def place(tmp_path):
    """A folder with scripts to run, and an environment with a socket folder of its own."""
    # the path of a socket has 107 bytes at most
    short = Path(tempfile.mkdtemp(prefix="w", dir="/tmp"))
    (tmp_path / "t").symlink_to(short)
    environment = os.environ | {
        "TMPDIR": str(short),
        "PEFTBENCH_WORKER_IDLE": "2",
        "PEFTBENCH_WORKER_MODULES": "json",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PEFTBENCH_WORKER", None)
    yield tmp_path, environment
    for path in short.rglob("*.sock"):
        path.unlink()  # a server whose socket is gone serves nobody and leaves when idle
    shutil.rmtree(short, ignore_errors=True)


def start(place, body, *arguments, **changes):
    folder, environment = place
    script = folder / "script.py"
    script.write_text(SCRIPT + body)
    options = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "cwd": folder,
        "env": environment,
    }
    return subprocess.Popen([sys.executable, str(script), *arguments], **(options | changes))


def run(place, body, *arguments, **changes):
    process = start(place, body, *arguments, **changes)
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def test_arguments_environment_folder_streams_and_status_arrive(place):
    folder, environment = place
    body = """
print(sys.argv[1:], os.environ["COLOUR"], Path.cwd() == Path(sys.argv[2]), sys.stdin.read(), __name__)
os.umask(0) == 0o027 or print("umask")
sys.exit(7)
"""
    changes = {"env": environment | {"COLOUR": "blau é"}, "stdin": subprocess.PIPE, "umask": 0o027}
    process = start(place, body, "a b", str(folder), **changes)
    out, err = process.communicate("from stdin", timeout=100)
    assert process.returncode == 7
    assert out == f"['a b', {str(folder)!r}] blau é True from stdin __main__\n"
    assert err == "warm\n"


def test_the_same_bits_as_alone(place):
    body = """
import torch
torch.set_num_threads(1)
torch.manual_seed(3)
weights = torch.nn.Linear(64, 64)
optimizer = torch.optim.AdamW(weights.parameters(), lr=0.01)
for _ in range(20):
    loss = (weights(torch.randn(16, 64)) ** 2).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
import hashlib
print(hashlib.sha256(weights.weight.detach().numpy().tobytes()).hexdigest())
"""
    _, environment = place
    environment["PEFTBENCH_WORKER_MODULES"] = "torch"
    first = run(place, body)
    second = run(place, body)
    alone = run(place, body, env=environment | {"PEFTBENCH_WORKER": "none"})
    assert first[2] == second[2] == "warm\n" and alone[2] == "alone\n"
    assert first[0] == alone[0] == 0
    assert first[1] == second[1] == alone[1]


def test_the_second_job_does_not_pay_for_the_imports(place):
    _, environment = place
    environment["PEFTBENCH_WORKER_MODULES"] = "torch"
    body = "print('torch' in sys.modules)"
    assert run(place, body)[1:] == ("True\n", "warm\n")
    begin = time.monotonic()
    assert run(place, body)[1:] == ("True\n", "warm\n")
    assert time.monotonic() - begin < 1.5


def test_code_is_read_anew_by_every_job(place):
    folder, _ = place
    for value in ("1", "2"):
        (folder / "live.py").write_text(f"VALUE = {value}  # {'x' * int(value)}\n")
        assert (
            run(place, "import live; print(live.VALUE, 'peftbench.graph' in sys.modules)")[1]
            == f"{value} False\n"
        )


def test_a_crash_is_reported(place):
    code, _, err = run(place, "os.kill(os.getpid(), 9)")
    assert code == 128 + 9 and "ended by SIGKILL: was the memory used up?" in err
    code, _, err = run(place, "raise ValueError('no')")
    assert code == 1 and "ValueError: no" in err
    assert run(place, "sys.exit('stop')")[::2] == (1, "warm\nstop\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_job(place, number):
    body = """
import shutil
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(2)
"""
    process = start(place, body)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(timeout=10) == (2 if number == signal.SIGINT else 15)


def gone(pid):
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_job_dies_with_its_client_and_takes_its_children_along(place):
    body = """
import subprocess
child = subprocess.Popen(["sleep", "100"])
print(os.getpid(), child.pid, flush=True)
time.sleep(100)
"""
    process = start(place, body)
    pids = process.stdout.readline().split()
    process.kill()
    process.wait()
    assert all(gone(pid) for pid in pids)


def test_a_job_that_ignores_sigterm_is_killed(place):
    body = """
import shutil
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(100)
"""
    process = start(place, body)
    pid = process.stdout.readline()
    process.kill()
    process.wait()
    assert gone(pid.strip())


def test_clients_at_once_share_one_server(place):
    folder, _ = place
    crowd = [start(place, "print(os.getppid()); time.sleep(0.5)") for _ in range(4)]
    outputs = [process.communicate(timeout=100) for process in crowd]
    assert [process.returncode for process in crowd] == [0] * 4
    assert all(err == "warm\n" for _, err in outputs)
    assert len({out for out, _ in outputs}) == 4  # four keepers
    assert len(list((folder / "t").rglob("*.sock"))) == 1


def test_a_stale_socket_is_replaced(place):
    folder, _ = place
    run(place, "")
    (socket,) = (folder / "t").rglob("*.sock")
    socket.unlink()
    socket.touch()
    assert run(place, "print(1)") == (0, "1\n", "warm\n")


def test_the_server_leaves_when_idle_and_another_takes_over(place):
    folder, _ = place
    run(place, "")
    deadline = time.monotonic() + 60
    while list((folder / "t").rglob("*.sock")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert run(place, "print(1)") == (0, "1\n", "warm\n")


def test_a_server_that_cannot_start_is_done_without(place):
    folder, environment = place
    deep = folder / ("x" * 60) / ("y" * 60)  # no socket can have so long a path
    deep.mkdir(parents=True)
    code, out, err = run(place, "print(1)", env=environment | {"TMPDIR": str(deep)})
    assert (code, out, err) == (0, "1\n", "alone\n")


def test_a_socket_folder_that_others_could_use_is_not_used(place):
    folder, _ = place
    open_folder = folder / "t" / f"peftbench-{os.getuid()}"
    open_folder.mkdir(mode=0o777)
    open_folder.chmod(0o777)
    assert run(place, "print(1)") == (0, "1\n", "alone\n")


def test_the_socket_folder_is_closed_to_others(place):
    folder, _ = place
    run(place, "")
    assert (folder / "t" / f"peftbench-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def test_when_a_job_runs_in_its_own_process(monkeypatch):
    monkeypatch.delenv(warm.OFF, raising=False)
    assert warm.run_in_worker(Execution(worker="none", device="cpu")) is None
    assert warm.run_in_worker(Execution(device="cuda")) is None
    monkeypatch.setenv(warm.OFF, "none")
    assert warm.run_in_worker(Execution(device="cpu")) is None


def test_the_real_server_imports_what_jobs_need(place):
    """All that it is to import can be imported, no thread runs, and nothing of ours is in it."""
    _, environment = place
    del environment["PEFTBENCH_WORKER_MODULES"]
    body = """
import peftbench
ours = sorted(name for name in sys.modules if name.startswith("peftbench"))
needed = ["torch", "transformers.models.llava.modeling_llava", "peft", "accelerate", "safetensors.torch"]
print(ours, [name for name in needed if name not in sys.modules], len(os.listdir("/proc/self/task")))
"""
    code, out, err = run(place, body)
    assert (code, err) == (0, "warm\n")
    ours = "['peftbench', 'peftbench.errors', 'peftbench.spec', 'peftbench.warm']"
    assert out == f"{ours} [] 1\n"


def test_the_server_knows_nothing_of_ours():
    text = warm.SERVER.read_text()
    assert "import peftbench" not in text and "from peftbench" not in text and "Thread" not in text
