"""How much faster the metrics are than the official code, with equality checked in the same run.

    python benchmarks/metrics.py                 # the sizes of VQAv2 val and Flickr30k: about ten minutes
    python benchmarks/metrics.py --scale 0.05    # a look

Each job runs in a process of its own; ratios are of CPU seconds, those of Java and other children included. The *job*
is the evaluation itself, from the first file read to the last score; *process* adds the start of Python and all
imports (for ours, numba's compiled kernels too). Memory is the peak resident set of the process, without Java's.

What "official" is: pycocoevalcap 1.2 itself for captions. VQAEval is not on PyPI: the plain restatement in
``plain_vqa.py`` stands for it, which takes the same steps in the same way (its cost per question is that known for the
original). Inputs are made up in the style and the proportions of the real files, byte for byte the same for both
sides. Ours computes all five variants of the VQA-score, and the standard errors, in the time given.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NOUNS = """
dog cat man woman boy girl tree car bus train plane table chair phone laptop pizza cake sandwich apple
banana orange bottle cup glass bowl fork knife spoon bench street sign light clock tower beach ocean snow
mountain surfboard kite frisbee ball bat glove racket court field grass fence wall door window house bed
pillow couch keyboard mouse book vase flower scissors sink toilet mirror oven stove umbrella handbag tie
suitcase hat shirt jacket horse sheep cow
"""
COLOURS = "red blue green white black brown yellow orange gray striped wooden small big old"
VERBS = "standing sitting walking running eating playing riding holding looking jumping talking climbing"
PLACES = "in on near with under behind across beside"


# Inputs


def make_vqa(folder: Path, questions: int) -> None:
    """Annotations, questions and results in the official formats, with a long tail of phrases."""
    rng = random.Random(0)
    nouns, colours, verbs = NOUNS.split(), COLOURS.split(), VERBS.split()

    def phrase() -> str:
        kind = rng.random()
        if kind < 0.5:
            return f"{rng.choice(colours)} {rng.choice(nouns)}"
        if kind < 0.7:
            return f"{rng.choice(nouns)} and {rng.choice(nouns)}"
        if kind < 0.85:
            return f"{rng.choice(verbs)} on {rng.choice(['a ', 'the ', ''])}{rng.choice(nouns)}"
        if kind < 0.95:
            joint = rng.choice(["'s", "-", "/", ", "])
            return f"{rng.choice(nouns)}{joint}{rng.choice(nouns)}{rng.choice(['', '.', ' '])}"
        return f"{rng.choice(nouns)} {rng.choice(verbs)} {rng.randint(0, 999)}"

    annotations, asked, results = [], [], []
    for number in range(questions):
        image = 1000 + number // 5
        name = image * 1000 + number % 5
        kind = rng.random()
        if kind < 0.38:
            kind_name, likely, doubt = "yes/no", rng.choice(["yes", "no"]), rng.choice([0.02, 0.1, 0.3])
            answers = [
                likely if rng.random() > doubt else "no" if likely == "yes" else "yes" for _ in range(10)
            ]
        elif kind < 0.5:
            kind_name, count = "number", rng.randint(0, 9)
            words = ["zero", "one", "two", "three"]
            answers = [
                str(count if rng.random() < 0.7 else rng.randint(0, 12))
                if rng.random() < 0.95
                else words[count % 4]
                for _ in range(10)
            ]
        else:
            kind_name, likely = "other", rng.choice(nouns if rng.random() < 0.7 else colours)
            doubt = rng.choice([0.1, 0.4, 0.8])
            answers = [
                likely if rng.random() > doubt else rng.choice(nouns) if rng.random() < 0.6 else phrase()
                for _ in range(10)
            ]
        annotations.append(
            {
                "question_type": rng.choice(
                    ["what is", "is the", "how many", "what color is the", "none of the above"]
                ),
                "multiple_choice_answer": max(set(answers), key=answers.count),
                "answers": [
                    {
                        "answer": text,
                        "answer_confidence": rng.choice(["yes", "maybe", "no"]),
                        "answer_id": place + 1,
                    }
                    for place, text in enumerate(answers)
                ],
                "image_id": image,
                "answer_type": kind_name,
                "question_id": name,
            }
        )
        question = f"What is the {rng.choice(nouns)} near the {rng.choice(nouns)}?"
        asked.append({"image_id": image, "question": question, "question_id": name})
        draw = rng.random()
        guess = answers[0] if draw < 0.6 else rng.choice(nouns) if draw < 0.8 else phrase()
        if rng.random() < 0.1:
            guess = guess.capitalize() + rng.choice(["", ".", "!"])
        results.append({"question_id": name, "answer": guess})
    (folder / "annotations.json").write_text(
        json.dumps({"info": {}, "annotations": annotations, "data_type": "mscoco"})
    )
    (folder / "questions.json").write_text(json.dumps({"info": {}, "questions": asked}))
    (folder / "results.json").write_text(json.dumps(results))


def make_captions(folder: Path, images: int) -> None:
    """Five references and a candidate per image; three lines in a thousand need Java."""
    rng = random.Random(1)
    nouns, colours, verbs, places = NOUNS.split(), COLOURS.split(), VERBS.split(), PLACES.split()
    letters = "aeioubcdfghklmnprst"
    rare = ["".join(rng.choice(letters) for _ in range(rng.randint(4, 8))) for _ in range(15_000)]

    def caption() -> str:
        words = [rng.choice(["A", "Two", "The", "Three", "An"])]
        words += [rng.choice(colours)] * (rng.random() < 0.6) + [rng.choice(nouns), "is", rng.choice(verbs)]
        words += [rng.choice(places), rng.choice(["a", "the", "some"])]
        words += [rng.choice(colours)] * (rng.random() < 0.5)
        words += [rng.choice(nouns) if rng.random() < 0.8 else rng.choice(rare)]
        if rng.random() < 0.6:
            words += [rng.choice(["while", "and", "as a man's"]), rng.choice(verbs), rng.choice(places), "a"]
            words += [rng.choice(nouns)]
        text = " ".join(words)
        if rng.random() < 0.003:
            text += rng.choice(
                [" (5'6\")", " @ home", " at 5:30pm", " near no. 5 .", " with a 1 1/2 foot board"]
            )
        return text + rng.choice([" .", ".", ""])

    rows = [
        {"id": n, "captions": [caption() for _ in range(5)], "prediction": caption()} for n in range(images)
    ]
    (folder / "captions.json").write_text(json.dumps(rows))


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
    for job in (vqa_official, vqa_ours, cider_official, cider_ours, captions_official, captions_ours)
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
    environment = {**os.environ, "PEFTBENCH_CACHE": cache, "PYTHONPATH": str(HERE)}
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
    return same and ratio >= target and (not target or ours["mb"] < official["mb"] / 3)


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
    return [
        report(f"{title}, cold", official, cold, 25, 2),
        report(f"{title}, references seen", official, warm, 150, 2),
    ]


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
