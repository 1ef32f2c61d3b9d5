"""Snakemake's command line without the two seconds that importing it takes: each call is a fork of one process.

The server imports Snakemake and nothing of ours. A call runs ``snakemake.cli.main`` in a fork, in a folder with an
environment of its own, with the ``peftbench`` of that folder. As it ends, it tells which jobs its plan knows.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Done(NamedTuple):
    """What came of a call."""

    returncode: int
    stdout: str
    """Output and errors together."""
    names: dict[str, str]
    """Digest -> name of the job, of all jobs of the plan that the call made."""
    records: dict[str, str]
    """Name -> record, for jobs that leave one."""


class Server:
    """Starts the server with its first call; ``close`` ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def call(self, folder: Path, *arguments: str, **variables: str) -> Done:
        """``snakemake arguments`` in ``folder``, with the code there."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin and self._process.stdout
        request = {"folder": str(folder), "arguments": arguments, "variables": variables}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Done(**json.loads(self._process.stdout.readline()))

    def close(self) -> float:
        """End the server; seconds of CPU that it and its calls have used."""
        if self._process is None:
            return 0.0
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        seconds = float(self._process.stdout.readline())
        self._process.wait(timeout=60)
        self._process = None
        return seconds


def name_of(job: Any) -> str:
    """Stage and what it is about; equal names stand for different jobs only where settings differ."""
    label = job.label.partition(", best of ")[0].replace(" ", "/")
    return f"{job.stage} {label}{_marks(job)}"


def _marks(job: Any) -> str:
    """What labels leave out: trial, choice, exposure, size and seed."""
    spec, inputs = json.loads(job.spec), job.inputs
    if job.stage in ("score", "judge"):
        judged = job.stage == "judge" or inputs["predictions"].stage == "judge"
        return _marks(inputs["predictions"]).removesuffix("+judged") + ("+judged" if judged else "")
    if job.stage == "predict" and "run" in inputs:
        return _marks(inputs["run"])
    if job.stage == "choose":
        return _marks(inputs["trial.0"]).partition("+rate")[0] + "+chosen"
    marks = ""
    if "base" in inputs and inputs["base"].stage == "expose":
        marks += "+exposed"
    if job.stage == "train":
        size = inputs["subset"].label.rpartition(" ")[2]
        marks += "" if size == "full" else f"+size={size}"
        marks += "" if spec["seed"] == 42 else f"+seed={spec['seed']}"
        marks += f"+rate={spec['optim']['learning_rate']:g}" if spec["validation"] else ""
    return marks


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run the call in a fork that writes its output and its plan into pipes."""
    output, plan = (os.memfd_create(name) for name in ("output", "plan"))
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = _call(request, output, plan)
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    found = json.loads(_content(plan) or '{"names": {}, "records": {}, "modules": []}')
    return {
        "returncode": os.waitstatus_to_exitcode(status),
        "stdout": _content(output).decode(errors="replace"),
    } | found


def _content(handle: int) -> bytes:
    with os.fdopen(handle, "rb") as stream:
        stream.seek(0)
        return stream.read()


def _call(request: dict[str, Any], output: int, plan: int) -> int:
    from snakemake.cli import main

    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    source = f"{request['folder']}/src"
    os.environ.update({"PYTHONPATH": source, "OMP_NUM_THREADS": "1"} | request["variables"])
    os.chdir(request["folder"])
    sys.path.insert(0, source)
    sys.argv = ["snakemake", *request["arguments"]]
    status: Any = 0
    try:
        main(sys.argv[1:])
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    names: dict[str, str] = {}
    records: dict[str, str] = {}
    if "peftbench.graph" in sys.modules:
        kind = sys.modules["peftbench.graph"].Plan
        for made in (thing for thing in gc.get_objects() if type(thing) is kind):
            names.update({digest: name_of(job) for digest, job in made.jobs.items()})
            records.update({name_of(job): job.record for job in made.jobs.values()})
    loaded = [name for name, module in sys.modules.items() if _installed(module)]
    os.write(plan, json.dumps({"names": names, "records": records, "modules": loaded}).encode())
    return status if isinstance(status, int) else 1


def _installed(module: Any) -> bool:
    return "/site-packages/" in (getattr(module, "__file__", None) or "")


def _serve() -> None:
    import snakemake.cli  # noqa: F401 (what the forks are spared)

    for line in sys.stdin:
        answer = _answer(json.loads(line))
        for name in answer.pop("modules"):
            if name not in sys.modules:
                with contextlib.suppress(Exception):  # it only saves the next call the time
                    importlib.import_module(name)
        gc.collect()
        gc.freeze()  # memory that forks do not touch is not copied
        print(json.dumps(answer), flush=True)
    times = os.times()
    print(sum(times[:4]), flush=True)


if __name__ == "__main__":
    _serve()
