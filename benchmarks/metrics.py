"""How much faster the metrics are than the official code, with equality checked in the same run.

    python benchmarks/metrics.py                 # the sizes of VQAv2 val and Flickr30k: about ten minutes
    python benchmarks/metrics.py --scale 0.05    # a look

Each job runs in a process of its own, on one thread; ratios are of CPU seconds, those of Java and other children
included. The *job* is the evaluation itself, from the first file read to the last score; *process* adds the start of
Python and all imports (for ours, numba's compiled kernels too). Of our runs the cheapest of a few counts, of the
official ones the only one. Memory is the peak resident set of the process, without Java's.

What "official" is: pycocoevalcap 1.2 itself for captions. VQAEval is not on PyPI: the plain restatement in
``plain_vqa.py`` stands for it, which takes the same steps in the same way (its cost per question is that known for the
original). Inputs are made up in the style and the proportions of the real files, byte for byte the same for both
sides. Ours computes all five variants of the VQA-score, and the standard errors, in the time given; a last job, not
timed, compares all variants with their restatements in every bit, on a tenth of the questions.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metric_inputs import make_captions, make_vqa

HERE = Path(__file__).parent
SMALL_MEGABYTES = 500
CHECKED_EVERY = 10
"""Every so many questions, all variants are compared with the plain restatements."""


def read_captions(folder: Path) -> tuple[list[list[str]], list[str]]:
    """(references, candidates) that ``make_captions`` wrote."""
    rows = json.loads((folder / "captions.json").read_text())
    return [row["captions"] for row in rows], [row["prediction"] for row in rows]


def tokenised(folder: Path) -> tuple[list[list[str]], list[str]]:
    """The same captions as tokens, for the jobs that only score."""
    from peftbench.metrics._ptb import tokenize

    references, candidates = read_captions(folder)
    lines = iter(tokenize([text for texts in references for text in texts], "never").lines)
    return [[next(lines) for _ in texts] for texts in references], tokenize(candidates, "never").lines


# Jobs: each prepares its input, and returns what is timed


def vqa_official(folder: Path) -> Callable[[], Any]:
    """The official evaluation of three files."""
    from plain_vqa import evaluate_files

    def job() -> Any:
        names = ("annotations.json", "questions.json", "results.json")
        overall, each = evaluate_files(*(folder / name for name in names))
        return [overall, list(each.values())]

    return job


def vqa_ours(folder: Path) -> Callable[[], Any]:
    """The same files through what ``peftbench score`` does."""
    import numpy.random  # noqa: F401

    from peftbench.metrics import _uncertainty, vqa_score  # noqa: F401
    from peftbench.metrics._formats import read_predictions
    from peftbench.metrics._rows import align
    from peftbench.metrics._vqa_refs import load_references

    def job() -> Any:
        ids, texts = read_predictions(folder / "results.json")
        references = load_references(folder / "annotations.json")
        order = align(references.ids, ids, "predictions")
        ordered = texts if references.ids == ids else [texts[place] for place in order]
        settings = vqa_score.Settings(variant="official")
        result = vqa_score.score_compiled(ordered, references, settings, columns=False)
        return [result.extra["rounded"]["official"], result.per_example]

    return job


def vqa_variants(folder: Path) -> Callable[[], Any]:
    """Variants that are not bit for bit those of the plain restatements, scored by the references kept."""
    from peftbench.metrics._formats import read_predictions
    from peftbench.metrics._vqa_refs import load_references
    from peftbench.metrics.vqa_score import variant_accuracies
    from plain_vqa import VARIANTS

    def job() -> Any:
        _, predictions = read_predictions(folder / "results.json")
        found = variant_accuracies(predictions, load_references(folder / "annotations.json"))
        rows = json.loads((folder / "annotations.json").read_text())["annotations"]
        wrong = set()
        for place in range(0, len(rows), CHECKED_EVERY):
            answers = [row["answer"] for row in rows[place]["answers"]]
            for name, plain in VARIANTS.items():
                accuracies = found[name]
                if accuracies is None or accuracies[place] != plain(answers, predictions[place]):
                    wrong.add(name)
        return sorted(wrong)

    return job


def cider_official(folder: Path) -> Callable[[], Any]:
    """pycocoevalcap's scorer over tokens."""
    from pycocoevalcap.cider.cider import Cider

    references, candidates = tokenised(folder)
    truth, given = dict(enumerate(references)), {n: [text] for n, text in enumerate(candidates)}

    def job() -> Any:
        mean, each = Cider().compute_score(truth, given)
        return [float(mean), each.tolist()]

    return job


def cider_ours(folder: Path) -> Callable[[], Any]:
    """Our scorer over the same tokens."""
    import numpy as np

    from peftbench.metrics._ngrams import compile_captions

    references, candidates = tokenised(folder)
    load_kernels()

    def job() -> Any:
        compiled = compile_captions(references)
        assert compiled is not None
        scores = compiled.score(candidates).cider
        return [float(np.mean(scores)), scores.tolist()]

    return job


def captions_official(folder: Path) -> Callable[[], Any]:
    """Captions to CIDEr through pycocoevalcap: two runs of Java, then its scorer."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references, candidates = read_captions(folder)

    def job() -> Any:
        truth = PTBTokenizer().tokenize(
            {n: [{"caption": t} for t in texts] for n, texts in enumerate(references)}
        )
        given = PTBTokenizer().tokenize({n: [{"caption": text}] for n, text in enumerate(candidates)})
        mean, each = Cider().compute_score(truth, given)
        return [float(mean), each.tolist()]

    return job


def captions_ours(folder: Path) -> Callable[[], Any]:
    """The same captions through our metric, standard error and bootstrap interval included."""
    import numpy.random  # noqa: F401

    from peftbench.data.example import Example
    from peftbench.metrics import _uncertainty, cider  # noqa: F401

    references, candidates = read_captions(folder)
    examples = [
        Example(str(n), "", "", [], -1, texts, "", "", "", "test", "") for n, texts in enumerate(references)
    ]
    load_kernels()

    def job() -> Any:
        result = cider.score(candidates, examples, {"also": []})
        assert result.extra["tokens"]["exact"]
        return [result.value / 100, [score / 100 for score in result.per_example]]

    return job


def load_kernels() -> None:
    """Load the compiled kernels: once per process, and compiled once per machine."""
    from peftbench.metrics._ngrams import compile_captions

    compiled = compile_captions([["a b c d"], ["b"]])
    assert compiled is not None
    compiled.score(["a b", "c"])


JOBS: dict[str, Callable[[Path], Callable[[], Any]]] = {
    job.__name__: job
    for job in (
        vqa_official,
        vqa_ours,
        vqa_variants,
        cider_official,
        cider_ours,
        captions_official,
        captions_ours,
    )
}


MAKERS = {"vqa": make_vqa, "captions": make_captions}


# Running and comparing


def make(kind: str, folder: Path, size: int) -> None:
    """Make inputs in a process of its own, so that this one stays small."""
    command = [sys.executable, __file__, "--job", kind, "--folder", str(folder), "--size", str(size)]
    subprocess.run(command, check=True)


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_megabytes() -> float:
    """Peak resident set of this process. Linux's own count begins anew at exec; rusage keeps the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [row for row in status.read_text().splitlines() if row.startswith("VmHWM")]
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def run_here(name: str, folder: Path, target: Path) -> None:
    """Child process: run one job and write its scores and cost."""
    job = JOBS[name](folder)
    if name.endswith("_ours"):
        gc.disable()  # as `peftbench score` does
    start = cpu_seconds()
    scores = job()
    cost = cpu_seconds() - start
    memory = peak_megabytes()
    target.write_text(json.dumps({"scores": scores, "cpu": cost, "mb": memory}))


def run_job(name: str, folder: Path, cache: str) -> dict[str, Any]:
    """Run one job in a process of its own; its cost, with that of the whole process."""
    target = folder / f"{name}.out.json"
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **one_thread, "PEFTBENCH_CACHE": cache, "PYTHONPATH": str(HERE)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # imports are compiled once, as on any machine
    command = [sys.executable, __file__, "--job", name, "--folder", str(folder), "--target", str(target)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=False, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"job {name} failed:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found: dict[str, Any] = json.loads(target.read_text())
    found["process"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found


def best(name: str, folder: Path, cache: str, repeats: int) -> dict[str, Any]:
    """The cheapest of a few runs."""
    return min((run_job(name, folder, cache) for _ in range(repeats)), key=lambda found: found["cpu"])


def equal(official: list[Any], ours: list[Any], digits: int | None) -> bool:
    """Whether corpus score and every score per row agree: to the official digits, or to 1e-12."""
    if digits is not None:
        return bool(official[0] == ours[0]) and official[1] == [round(value, digits) for value in ours[1]]
    pairs = zip([official[0], *official[1]], [ours[0], *ours[1]], strict=True)
    return all(abs(a - b) <= 1e-12 for a, b in pairs)


def report(
    title: str, official: dict[str, Any], ours: dict[str, Any], target: float, digits: int | None = None
) -> bool:
    """Print one line of the comparison; whether it is equal and reaches its target."""
    ratio = official["cpu"] / ours["cpu"]
    same = equal(official["scores"], ours["scores"], digits)
    print(
        f"{title:34} {official['cpu']:9.2f} {ours['cpu']:8.3f} {ratio:7.1f}x {target:6.0f}x  "
        f"{'equal: yes' if same else 'equal: NO '}  {official['process'] / ours['process']:6.1f}x  "
        f"{official['mb']:6.0f} {ours['mb']:6.0f} {ours['mb'] / official['mb']:6.2f}",
        flush=True,
    )
    # Small jobs take what Python, numpy and numba take.
    lean = official["mb"] < SMALL_MEGABYTES or ours["mb"] < official["mb"] / 3
    return same and ratio >= target and lean


def main() -> int:
    """Run all comparisons; status 1 where one is not equal or misses its target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the full sizes (targets hold for 1)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each of our jobs; the cheapest counts"
    )
    parser.add_argument("--only", choices=("vqa", "captions"), help="one half of the comparisons")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.size:
        MAKERS[arguments.job](arguments.folder, arguments.size)
        return 0
    if arguments.job:
        run_here(arguments.job, arguments.folder, arguments.target)
        return 0
    print(
        f"{'job':34} {'official':>9} {'ours':>8} {'ratio':>8} {'target':>7}  {'':10}  {'process':>7}  "
        f"{'MB off.':>6} {'ours':>6} {'share':>6}"
    )
    met = []
    with tempfile.TemporaryDirectory(prefix="peftbench-metrics-") as name:
        folder = Path(name)
        if arguments.only != "captions":
            met += compare_vqa(folder, int(214_354 * arguments.scale), arguments.repeats)
        if arguments.only != "vqa":
            met += compare_captions(
                folder, [int(n * arguments.scale) for n in (5_000, 31_014)], arguments.repeats
            )
    return 0 if all(met) or arguments.scale != 1 else 1


def compare_vqa(folder: Path, questions: int, repeats: int) -> list[bool]:
    """VQA-score, loading included: first sight of the references, and references seen before."""
    make("vqa", folder, questions)
    official = run_job("vqa_official", folder, "off")
    time.sleep(2.5)  # a file is recognised unread only when it is older than the clock's grain
    colds = [run_job("vqa_ours", folder, str(folder / f"cold{n}")) for n in range(repeats)]
    cold = min(colds, key=lambda found: found["cpu"])
    warm = best("vqa_ours", folder, str(folder / "cold0"), repeats)
    title = f"VQA-score {questions}"
    met = [
        report(f"{title}, cold", official, cold, 25, 2),
        report(f"{title}, references seen", official, warm, 150, 2),
    ]
    wrong = run_job("vqa_variants", folder, str(folder / "cold0"))["scores"]
    verdict = f"NO ({', '.join(wrong)})" if wrong else "yes"
    print(f"  all variants, every {CHECKED_EVERY}th question, equal in every bit: {verdict}", flush=True)
    return [*met, not wrong]


def compare_captions(folder: Path, sizes: list[int], repeats: int) -> list[bool]:
    """The CIDEr scorer, and captions end to end."""
    from peftbench.metrics._ptb import java_binary

    met = []
    for images in sizes:
        make("captions", folder, images)
        official = run_job("cider_official", folder, "off")
        ours = best("cider_ours", folder, "off", repeats)
        met.append(report(f"CIDEr scorer {images}", official, ours, 20))
        if java_binary() is None:
            print("captions end to end: no java on the PATH, so there is nothing to compare with")
            continue
        official = run_job("captions_official", folder, "off")
        cache = str(folder / f"captions{images}")
        cold = run_job("captions_ours", folder, cache)
        warm = best("captions_ours", folder, cache, repeats)
        report(f"captions {images}, cold", official, cold, 0)
        met.append(report(f"captions {images}, references seen", official, warm, 25))
    return met


if __name__ == "__main__":
    sys.exit(main())
