"""How long a data set of the size of VQAv2 takes to prepare, and how much memory: it must not hold all rows.

    python benchmarks/prepare.py                  # 443,757 questions about 82,783 pictures, all of them prepared
    python benchmarks/prepare.py --scale 0.05     # a look
    python benchmarks/prepare.py --sample 20000   # as config/datasets/vqav2.yaml does

The files are made up, in the layout of the real ones: questions and annotations (ten answers each, with all keys) as
one JSON document in a zip archive, pictures in another. Pictures are small (one JPEG of 3 kB with a varying comment, so
that each has bytes of its own; the real ones have 160 kB): time for reading and hashing is to be added, memory is not.
The preparation runs in a process of its own; memory is its peak resident set (VmHWM).
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

QUESTIONS, PICTURES = 443_757, 82_783
TARGET_MEGABYTES = 1000
WORDS = (
    "yes",
    "no",
    "2",
    "white",
    "tennis racket",
    "net",
    "down",
    "frisbee",
    "1",
    "blue",
    "nike",
    "on the table",
)

SOURCE: dict[str, Any] = {
    "kind": "table",
    "from": ["questions", "answers", "coco"],
    "splits": {
        "train": {
            "rows": {"in": "questions", "member": "*.json", "field": "questions"},
            "join": {
                "rows": {"in": "answers", "member": "*.json", "field": "annotations"},
                "by": "question_id",
            },
            "image": {"in": "coco", "name": "train2014/COCO_train2014_{image_id:012d}.jpg"},
        }
    },
    "row": {
        "id": "{question_id}",
        "question": "question",
        "answers": "answers[].answer",
        "annotators": 10,
        "target": "most_common",
        "question_type": "question_type",
        "answer_type": "answer_type",
        "facts": ["image_id"],
    },
}


def write_files(folder: Path, questions: int, pictures: int) -> None:
    """The three archives, one folder each, as the retrieve stage leaves them."""
    head = '{"info": {"version": "2.0"}, "task_type": "Open-Ended", "license": {"name": "CC"}, '
    write_json(folder / "questions/v2_Questions_Train_mscoco.zip", head, "questions", questions, pictures)
    write_json(folder / "answers/v2_Annotations_Train_mscoco.zip", head, "annotations", questions, pictures)
    from PIL import Image

    stream = io.BytesIO()
    Image.effect_noise((96, 72), 60).save(stream, "JPEG", quality=80)
    jpeg = stream.getvalue()
    (folder / "coco").mkdir()
    with zipfile.ZipFile(folder / "coco/train2014.zip", "w") as archive:
        for i in range(pictures):
            comment = f"{i:08d}".encode()
            data = jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
            archive.writestr(f"train2014/COCO_train2014_{i:012d}.jpg", data)


def write_json(path: Path, head: str, field: str, questions: int, pictures: int) -> None:
    """One document in one archive, written as a stream; annotations come in another order than questions."""
    path.parent.mkdir()
    order = list(range(questions))
    if field == "annotations":
        Random(1).shuffle(order)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"v2_{field}.json", "w", force_zip64=True) as stream,
    ):
        stream.write(f'{head}"{field}": ['.encode())
        for place, row in enumerate(rows(field, order, pictures)):
            stream.write((", " if place else "").encode() + json.dumps(row).encode())
        stream.write(b'], "data_subtype": "train2014"}')


def rows(field: str, order: list[int], pictures: int) -> Iterator[dict[str, Any]]:
    """Rows as in the official files."""
    for i in order:
        image = i % pictures
        name = image * 1000 + i // pictures
        if field == "questions":
            yield {
                "image_id": image,
                "question": f"What is the person number {i} holding?",
                "question_id": name,
            }
            continue
        rng = Random(i)
        words = [rng.choice(WORDS) for _ in range(3)]
        answers = [
            {"answer": rng.choice(words), "answer_confidence": "yes", "answer_id": k + 1} for k in range(10)
        ]
        yield {
            "question_type": "what is the",
            "multiple_choice_answer": words[0],
            "answers": answers,
            "image_id": image,
            "answer_type": "other",
            "question_id": name,
        }


def prepare(folder: Path, size: int, sample: int) -> dict[str, Any]:
    """Prepare, and say how it went; runs in a process of its own."""
    from peftbench.data.prepare import prepare_dataset
    from peftbench.spec import PrepareSpec

    split = SOURCE["splits"]["train"]
    split |= {"expected": size} | ({"sample": {"take": sample}} if sample else {})
    spec = PrepareSpec(dataset="vqav2", source=SOURCE, splits={"train": sample or size})
    files = {name: folder / name for name in SOURCE["from"]}
    begin = time.perf_counter()
    facts = prepare_dataset(spec, folder / "out", folder / "images", files)["splits"]["train"]
    seconds = time.perf_counter() - begin
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
    return {
        "rows": facts["rows"],
        "images": facts["images"],
        "seconds": round(seconds, 1),
        "peak_megabytes": peak,
        "parquet_megabytes": round((folder / "out/train.parquet").stat().st_size / 1e6, 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of VQAv2's size")
    parser.add_argument("--sample", type=int, default=0, help="rows to draw; 0: all")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    questions, pictures = (max(1, int(n * arguments.scale)) for n in (QUESTIONS, PICTURES))
    if arguments.folder:
        print(json.dumps(prepare(arguments.folder, questions, arguments.sample)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), questions, pictures)
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", folder]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    done["target_megabytes"] = TARGET_MEGABYTES
    print(json.dumps(done, indent=1))
    if done["peak_megabytes"] > TARGET_MEGABYTES:
        sys.exit("error: more memory than the target")


if __name__ == "__main__":
    main()
