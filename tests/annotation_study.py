"""A small study with known hallucinations, and annotators' files for it."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from peftbench.annotation.collect import COLUMNS, FORMAT
from peftbench.annotation.sheet import Answers, Sheet, make_sheet
from peftbench.data.example import Example
from peftbench.data.images import store_image
from peftbench.spec import Prompt

NAMES = ("dog", "cat", "tree", "red ball", "car", "boat")
METHODS = ("adapter", "lora", "prefix")
EPOCHS = (3, 6)
PROMPT = Prompt(templates=["Describe this picture in one sentence."])


class Study:
    """Captions of three methods at two epochs on a few drawn pictures, with the objects of each."""

    def __init__(self, folder: Path, n: int = 6) -> None:
        self.folder, self.data, self.images = folder, folder / "data", folder / "images"
        self.data.mkdir()
        examples = [self._example(i) for i in range(n)]
        self.ids = [example.id for example in examples]
        pq.write_table(pa.Table.from_pylist(msgspec.to_builtins(examples)), self.data / "test.parquet")
        self.answers = [self._answers(method, epoch) for method in METHODS for epoch in EPOCHS]

    def _example(self, i: int) -> Example:
        name = NAMES[i % len(NAMES)]
        picture = Image.new("RGB", (320, 240), (235, 240, 245))
        draw = ImageDraw.Draw(picture)
        draw.rectangle((40 + i, 60, 200, 200), fill=(60 + 20 * i, 90, 160))
        draw.text((60, 120), f"{name} {i}", fill=(255, 255, 255))
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        facts = {"objects": [name], "names": {name: [name]}}
        return Example(
            id=f"flickr/{i} <{name}>",
            image=store_image(self.images, stream.getvalue()),
            question="",
            choices=[],
            answer_index=-1,
            answers=[f"a {name}"],
            target=f"a {name}",
            question_type="one",
            answer_type="",
            split="test",
            source=json.dumps(facts),
        )

    def caption(self, method: str, epoch: int, i: int) -> str:
        name = NAMES[i % len(NAMES)]
        wrong = NAMES[(i + 1) % len(NAMES)]
        invents = {"adapter": i == 0, "lora": i < 2, "prefix": i < 2 + epoch // 3}[method]
        return f"a {name} and a {wrong}" if invents else f"a {name}"

    def _answers(self, method: str, epoch: int) -> Answers:
        folder = self.folder / f"{method}-{epoch}"
        folder.mkdir()
        texts = [self.caption(method, epoch, i) for i in range(len(self.ids))]
        pq.write_table(pa.table({"id": self.ids, "prediction": texts}), folder / "predictions.parquet")
        return Answers(method=method, epoch=epoch, folder=folder)

    def sheet(self, name: str = "sheet", **options: Any) -> Sheet:
        options = {"prompt": PROMPT, "seed": 5, **options}
        return make_sheet(
            self.answers, self.folder / name, data_dir=self.data, image_store=self.images, **options
        )


def truth(sheet: Sheet) -> dict[tuple[str, str], bool]:
    """Whether an answer names an object that its picture lacks."""
    return {(item.id, a.key): " and " in a.text for item in sheet.items for a in item.answers}


def write_json(
    path: Path, sheet: Sheet, name: str, flags: dict[tuple[str, str], bool], **change: Any
) -> Path:
    rows = [
        {"item": item, "answer": key, "hallucination": flag, "note": "odd" if flag else ""}
        for (item, key), flag in flags.items()
    ]
    content = {"format": FORMAT, "sheet": sheet.sheet, "annotator": name, "answers": rows, **change}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_csv(
    path: Path, sheet: Sheet, name: str, flags: dict[tuple[str, str], bool], delimiter: str = ","
) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(COLUMNS)
        for (item, key), flag in flags.items():
            writer.writerow([sheet.sheet, name, item, key, "yes" if flag else "no", "a, b; c"])
    return path
