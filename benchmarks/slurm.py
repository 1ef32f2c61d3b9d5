"""What running on SLURM costs beside running on this machine.

    python benchmarks/slurm.py             # the demo here, then on a real SLURM with as many CPUs, both from nothing
    python benchmarks/slurm.py --parse     # the Snakefile over bare Snakemake: on a login node, and in a job
    python benchmarks/slurm.py --small     # how many jobs of the full paper are small enough to share SLURM jobs

The first starts a SLURM of its own (Debian packages slurmctld, slurmd, slurm-client), runs the demo with
``profiles/slurm`` as it is shipped, and checks that tables, weights and answers are equal bit for bit. Wants a machine
with nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from peftbench.config import Settings  # noqa: E402
from peftbench.graph import Plan  # noqa: E402
from peftbench.jobs import upstream  # noqa: E402
from peftbench.planning.plan_cli import HARDWARE_VARIABLE  # noqa: E402
from peftbench.planning.resources import Requests  # noqa: E402
from slurm_lab import Lab, content, lacking  # noqa: E402

CONFIGURATIONS: dict[str, list[str]] = {
    "config.yaml": [],
    "paper.yaml": ["--configfile", "config/paper.yaml"],
}
AS_JOB = [
    *("-n", "-c1", "--nolock", "--mode", "remote", "--target-files-omit-workdir-adjustment"),
    *("--max-inventory-time", "0", "--target-jobs"),
]
"""How a job on a node calls Snakemake, but for ``-n``."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""}


def busy() -> float:
    """CPU seconds of this machine since it was started, whoever had them."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice)


def run(study: str, folder: Path, environment: dict[str, str], *options: str) -> tuple[float, float]:
    """Snakemake from nothing; wall and CPU seconds."""
    command = [sys.executable, "-m", "snakemake", study, "--directory", str(folder), *options]
    began, before = time.monotonic(), busy()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"error: snakemake {study} ended with status {done.returncode}:\n{done.stdout[-4000:]}")
    (folder / "said.log").write_text(done.stdout, encoding="utf-8")
    return time.monotonic() - began, busy() - before


def compare(study: str, cores: int, more: list[str]) -> None:
    """The study here and on SLURM."""
    if lacking():
        sys.exit(f"error: {lacking()}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    here, there = folder / "here", folder / "there"
    for path in (here, there):
        path.mkdir()
    wall, cpu = run(study, here, dict(os.environ), "--cores", str(cores))
    print(f"{study} here, {cores} cores: {wall:.0f} s, {cpu:.0f} CPU-s", flush=True)
    lab = Lab(cpus=max(1, cores // 2)).start()  # two nodes in its partition cpu
    try:
        options = ["--profile", "profiles/slurm", "--slurm-resilient-partition", "cpu", *more]
        wall_there, cpu_there = run(study, there, lab.environment, *options)
    finally:
        lab.stop()
    said = (there / "said.log").read_text()
    names = re.findall(r"^(\S+) is SLURM job \d+ \(log", said, re.MULTILINE)
    print(
        f"{study} on SLURM, {cores} CPUs: {wall_there:.0f} s, {cpu_there:.0f} CPU-s; {len(names)} SLURM jobs"
    )
    for name, count in Counter(re.split("[:/]", name)[0] for name in names).most_common():
        print(f"  {count:3d} {name}")
    first, second = content(here / "results"), content(there / "results")
    equal = first == second
    print(
        f"wall ratio {wall_there / wall:.2f}, CPU ratio {cpu_there / cpu:.2f}; {len(first)} files equal: {equal}"
    )
    print(f"logs and results: {folder}")
    if not equal:
        sys.exit("error: the results differ")


def cpu_seconds(command: list[str], folder: Path) -> float:
    """CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, env=os.environ | ONE_THREAD, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def parse(repeats: int) -> None:
    """Snakemake with our Snakefile beside Snakemake with an empty one: the least of runs in turn."""
    snakemake = [sys.executable, "-m", "snakemake"]
    commands = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rule = 'rule one:\n    output: "{digest}.txt"\n    shell: "touch {output}"\n'
        (folder / "Snakefile").write_text(rule)
        commands["", "list"] = [*snakemake, "--list"], folder
        commands["", "job"] = [*snakemake, *AS_JOB, "one:digest=x", "--allowed-rules", "one"], folder
        for title, options in CONFIGURATIONS.items():
            plan = Plan(Settings.from_files(ROOT, [ROOT / path for path in options[1:]]))
            for study in plan.settings.names("study"):
                plan.study(study)
            jobs = upstream(plan.study("table1_main").scores)
            job = next(one for one in jobs if one.stage == "train")
            place = folder / title
            for one in job.inputs.values():
                (place / "results" / one.directory).mkdir(parents=True)
                (place / "results" / one.record).touch()
            with contextlib.chdir(place):
                plan.write_tickets()
            _, model, dataset, last = job.directory.split("/")
            method, _, digest = last.rpartition("-")
            target = f"train_adapter:model={model},dataset={dataset},method={method},digest={digest}"
            words = [*AS_JOB, target, "--allowed-rules", "train_adapter", "--directory", str(place), *options]
            commands[title, "list"] = [*snakemake, "--list", *options], ROOT
            commands[title, "job"] = [*snakemake, *words], ROOT
        found: dict[tuple[str, str], float] = {}
        for _ in range(repeats):
            for key, command in commands.items():
                found[key] = min(cpu_seconds(*command), found.get(key, 1e9))
    bare = found["", "list"], found["", "job"]
    print(f"bare Snakemake: {bare[0]:.2f} CPU-s to parse, {bare[1]:.2f} to plan one job of a cluster")
    for title in CONFIGURATIONS:
        login, node = found[title, "list"] - bare[0], found[title, "job"] - bare[1]
        print(f"  {title}: + {login:.2f} on a login node, + {node:.2f} in a job")


def small(hardware: str) -> None:
    """How many jobs of the full paper share SLURM jobs, by the estimates."""
    os.environ[HARDWARE_VARIABLE] = hardware
    plan = Plan(Settings.from_files(ROOT, [ROOT / "config/paper.yaml"]))
    for study in plan.settings.names("study"):
        if plan.settings.study(study).group == "paper":
            plan.study(study)
    requests = Requests(plan, ROOT)
    for stage in ("train", "predict"):
        asked = [requests.of(job) for job in plan.jobs.values() if job.stage == stage]
        share = sum(bool(one["slurm_batch"]) for one in asked)
        print(f"{stage}: {len(asked)} jobs, {share} share SLURM jobs; {hardware}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parse", action="store_true", help="measure parsing, not the demo")
    parser.add_argument("--small", action="store_true", help="count jobs that share SLURM jobs")
    parser.add_argument("--hardware", default="a100-80gb", help="of --small: a file of config/hardware")
    parser.add_argument("--study", default="demo", help="what is run (default: demo)")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--repeats", type=int, default=6, help="of each parse; the least counts")
    arguments, more = parser.parse_known_args()
    if arguments.parse:
        parse(arguments.repeats)
    elif arguments.small:
        small(arguments.hardware)
    else:
        compare(arguments.study, arguments.cores, more)


if __name__ == "__main__":
    main()
