"""Miniature copies of the public data sets, in the layouts of the real ones: what a hub and web servers hold.

``write_repos(root)`` fills ``root/datasets/<owner>/<name>`` (repositories of the Hugging Face hub) and
``root/files/<host>/<path>`` (files of the web). Columns, their types, keys, members of archives and file names are
those of the real ones; what is in them is made up and small. The pictures are real JPEG and PNG files.
"""

import csv
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (220, 200, 40)}
HUB_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(key: str, kind: str = "JPEG") -> bytes:
    """A small drawing that differs by its key."""
    rng = Random(key)
    image = Image.new(
        "RGB", (40 + rng.randrange(24), 32 + rng.randrange(24)), rng.choice(list(COLOURS.values()))
    )
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = rng.randrange(30), rng.randrange(24)
        draw.ellipse(
            (x, y, x + 4 + rng.randrange(12), y + 4 + rng.randrange(12)), rng.choice(list(COLOURS.values()))
        )
    draw.text((2, 2), key[-6:], fill="white")
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def write_repos(root: Path, rows: int = 12, seed: int = 0) -> None:
    """Write them all: ``rows`` training rows (or images) each, half as many test rows."""
    hub, web = root / "datasets", root / "files"
    scienceqa(hub / "derek-thomas/ScienceQA", rows)
    flickr30k(hub / "nlphuji/flickr30k", rows, seed)
    ocr_vqa(hub / "howard-hou/OCR-VQA", rows)
    mmhal_bench(hub / "Shengcao1006/MMHal-Bench", rows)
    pope(hub / "lmms-lab/POPE", rows)
    textvqa(hub / "lmms-lab/textvqa", rows, seed)
    gqa(hub / "lmms-lab/GQA", rows)
    aokvqa(hub / "HuggingFaceM4/A-OKVQA", rows)
    vizwiz(web / "vizwiz.cs.colorado.edu/VizWiz_final", rows, seed)
    iconqa(web / "iconqa2021.s3.us-west-1.amazonaws.com", rows)
    coco(web / "images.cocodataset.org/zips", rows)
    okvqa(web / "okvqa.allenai.org/static/data", rows, seed)
    vqav2(web / "s3.amazonaws.com/cvmlp/vqa/mscoco/vqa", rows, seed)
    karpathy(web / "cs.stanford.edu/people/karpathy/deepimagesent", rows)


# ---- Writing ----------------------------------------------------------------------------------------------------


def readme(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{text.strip()}\n---\n\n# Dataset card\n", encoding="utf-8")


def config_yaml(configs: dict[str, dict[str, str]]) -> str:
    """The ``configs`` block of a dataset card: config -> split -> path."""
    lines = ["configs:"]
    for name, splits in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    return "\n".join(lines)


def parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema, shards: int = 1) -> None:
    """One file, or several ``-0000i-of-0000n`` where the path has ``{}`` in that place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {f.name: {"_type": "Image"} if f.type == HUB_IMAGE else feature(f.type) for f in schema}
    marked = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    each = -(-len(rows) // shards)
    for shard in range(shards):
        name = str(path).format(f"{shard:05d}-of-{shards:05d}")
        part = rows[shard * each : (shard + 1) * each]
        pq.write_table(pa.Table.from_pylist(part, schema=marked), name, row_group_size=5)


def feature(kind: pa.DataType) -> Any:
    """A type as the ``datasets`` library writes it into the schema."""
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": feature(kind.value_type)}
    if pa.types.is_struct(kind):
        return {field.name: feature(field.type) for field in kind}
    return {"_type": "Value", "dtype": {"double": "float64", "float": "float32"}.get(str(kind), str(kind))}


def zipped(path: Path, members: Iterable[tuple[str, bytes]], stored: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, kind)  # without the time: the same bytes each time


def compact(value: Any) -> bytes:
    return json.dumps(value).encode()


def hub_image(key: str, kind: str = "JPEG") -> dict[str, Any]:
    return {"bytes": picture(key, kind), "path": None}


# ---- Repositories of the hub ------------------------------------------------------------------------------------


def scienceqa(folder: Path, rows: int) -> None:
    readme(
        folder,
        "license: cc-by-sa-4.0\n"
        + config_yaml(
            {"default": {"train": "data/train-*", "validation": "data/validation-*", "test": "data/test-*"}}
        ),
    )
    text = pa.string()
    schema = pa.schema(
        [
            ("image", HUB_IMAGE),
            ("question", text),
            ("choices", pa.list_(text)),
            ("answer", pa.int8()),
            *(
                (n, text)
                for n in ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture")
            ),
            ("solution", text),
        ]
    )
    names = {
        "train": "train-00000-of-00001-1028f23e353fbe3e",
        "validation": "validation-00000-of-00001-6c7328ff6c84284c",
        "test": "test-00000-of-00001-f0e719df791966ff",
    }
    for split, count in (("train", rows), ("validation", rows // 2), ("test", rows // 2)):
        made = [
            {
                "image": hub_image(f"sqa-{split}-{i}", "PNG") if i % 2 == 0 else None,
                "question": f"Which property do these {i} {split} objects have in common?",
                "choices": ["opaque", "salty", "slippery", "hard"][: 2 + i % 3],
                "answer": i % 2,
                "hint": "Select the best answer." if i % 3 == 0 else "",
                "task": "closed choice",
                "grade": f"grade{1 + i % 12}",
                "subject": ("natural science", "social science", "language science")[i % 3],
                "topic": "physics",
                "category": "Materials",
                "skill": "Compare properties of objects",
                "lecture": "An object has different properties.",
                "solution": "Look at each object.",
            }
            for i in range(count)
        ]
        parquet(folder / f"data/{names[split]}.parquet", made, schema)


def flickr_split(i: int, rows: int) -> str:
    return "train" if i < rows else "test" if i < rows + rows // 2 else "val"


def flickr30k(folder: Path, rows: int, seed: int) -> None:
    readme(folder, "license: unknown")
    (folder / "flickr30k.py").write_text("# a loading script, which nothing runs\n")
    count = rows + rows // 2 + 3
    order = list(range(count))
    Random(seed).shuffle(order)
    with (folder / "flickr_annotations_30k.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["raw", "sentids", "split", "filename", "img_id"])
        for i in order:
            raw = [f'Caption {k} of picture {i}, with "quotes", commas and é.' for k in range(5)]
            ids = [5 * i + k for k in range(5)]
            table.writerow([json.dumps(raw), json.dumps(ids), flickr_split(i, rows), f"{1000092 + i}.jpg", i])
    zipped(
        folder / "flickr30k-images.zip",
        [
            *((f"flickr30k-images/{1000092 + i}.jpg", picture(f"flickr-{i}")) for i in range(count)),
            *((f"__MACOSX/flickr30k-images/._{1000092 + i}.jpg", b"\0\5\x16\7") for i in range(count)),
        ],
        stored=True,
    )


def ocr_vqa(folder: Path, rows: int) -> None:
    readme(folder, "dataset_info:\n  splits:\n  - name: train\n  - name: test\n  - name: validation")
    text = pa.string()
    box = pa.struct([(n, pa.float64()) for n in ("width", "height", "top_left_x", "top_left_y")])
    schema = pa.schema(
        [
            ("image", HUB_IMAGE),
            ("image_id", text),
            *((name, pa.list_(text)) for name in ("questions", "answers", "ocr_tokens")),
            ("ocr_info", pa.list_(pa.struct([("word", text), ("bounding_box", box)]))),
            *((name, text) for name in ("title", "authorName", "genre")),
            ("image_width", pa.int64()),
            ("image_height", pa.int64()),
            ("image_url", text),
            ("set_name", text),
        ]
    )
    for split, count, shards in (("train", rows, 2), ("validation", rows // 2, 1), ("test", rows // 2, 1)):
        made = []
        for i in range(count):
            title, author = f"Tales of {split} {i}", f"Ann Author {i}"
            made.append(
                {
                    "image": hub_image(f"ocr-{split}-{i}"),
                    "image_id": f"{'0' if split == 'train' else 'T'}{i:09d}",
                    "questions": [
                        "Who wrote this book?",
                        "What is the title of this book?",
                        "Is this a comedy book?",
                    ],
                    "answers": [author, title, "No"],
                    "ocr_tokens": title.split(),
                    "ocr_info": [
                        {
                            "word": title.split()[0],
                            "bounding_box": {
                                "width": 0.5,
                                "height": 0.1,
                                "top_left_x": 0.2,
                                "top_left_y": 0.3,
                            },
                        }
                    ],
                    "title": title,
                    "authorName": author,
                    "genre": "Travel",
                    "image_width": 60,
                    "image_height": 80,
                    "image_url": f"http://ecx.images-amazon.com/images/I/{i}.jpg",
                    "set_name": split,
                }
            )
        parquet(folder / f"data/{split}-{{}}-45d65f5057dd1a9e.parquet", made, schema, shards)


MMHAL_TYPES = (
    "attribute",
    "adversarial",
    "comparison",
    "counting",
    "relation",
    "environment",
    "holistic",
    "other",
)


def mmhal_bench(folder: Path, rows: int) -> None:
    readme(folder, "arxiv: 2309.14525\nlicense: apache-2.0")
    (folder / "images").mkdir()
    made = []
    for i in range(rows):
        name = f"{10172500456 + i}_1f40b6bd38_o.jpg"
        (folder / "images" / name).write_bytes(picture(f"mmhal-{i}"))
        made.append(
            {
                "question_type": MMHAL_TYPES[i % 8],
                "question_topic": "outdoor",
                "image_id": f"{i:016x}",
                "image_src": f"https://c2.staticflickr.com/6/5498/{name}",
                "image_content": ["Fire hydrant", "Tree"],
                "question": f"What colour is the fire hydrant cap number {i}?",
                "gt_answer": "The cap of the fire hydrant is yellow.",
                "model_answer": "",
            }
        )
    (folder / "response_template.json").write_text(json.dumps(made, indent=2))


def pope(folder: Path, rows: int) -> None:
    readme(
        folder,
        config_yaml(
            {
                "Full": {c: f"Full/{c}-*" for c in ("adversarial", "popular", "random")},
                "default": {"test": "data/test-*"},
            }
        ),
    )
    names = ("id", "question_id", "question", "answer", "image_source")
    schema = pa.schema([*((n, pa.string()) for n in names), ("image", HUB_IMAGE), ("category", pa.string())])
    made = []
    for category in ("adversarial", "popular", "random"):
        for i in range(rows):
            source = f"COCO_val2014_{i // 6:012d}"
            made.append(
                {
                    "id": str(len(made)),
                    "question_id": str(i + 1),
                    "question": f"Is there a snowboard number {i} in the image?",
                    "answer": ("yes", "no")[i % 2],
                    "image_source": source,
                    "image": hub_image(source),
                    "category": category,
                }
            )
    parquet(folder / "data/test-{}.parquet", made, schema, shards=3)


def textvqa(folder: Path, rows: int, seed: int) -> None:
    readme(
        folder,
        config_yaml(
            {"default": {"train": "data/train-*", "validation": "data/validation-*", "test": "data/test-*"}}
        ),
    )
    text, texts, number = pa.string(), pa.list_(pa.string()), pa.int32()
    schema = pa.schema(
        [
            ("image_id", text),
            ("question_id", number),
            ("question", text),
            ("question_tokens", texts),
            ("image", HUB_IMAGE),
            ("image_width", number),
            ("image_height", number),
            ("flickr_original_url", text),
            ("flickr_300k_url", text),
            ("answers", texts),
            ("image_classes", texts),
            ("set_name", text),
            ("ocr_tokens", texts),
        ]
    )
    rng = Random(seed)
    for split, count, start in (
        ("train", rows, 0),
        ("validation", rows // 2, 34602),
        ("test", rows // 2, 39602),
    ):
        made = [
            {
                "image_id": f"{split}{i:010x}",
                "question_id": start + i,
                "question": f"what is the brand of camera {i}?",
                "question_tokens": ["what", "is"],
                "image": hub_image(f"textvqa-{split}-{i}"),
                "image_width": 64,
                "image_height": 48,
                "flickr_original_url": "",
                "flickr_300k_url": "",
                "answers": [] if split == "test" else ten(rng, ["nokia", "kodak"]),
                "image_classes": ["Camera"],
                "set_name": split,
                "ocr_tokens": ["NOKIA"],
            }
            for i in range(count)
        ]
        parquet(folder / f"data/{split}-{{}}.parquet", made, schema)


def gqa(folder: Path, rows: int) -> None:
    kinds = {f"{s}_balanced_{t}": s for s in ("testdev", "train") for t in ("images", "instructions")}
    readme(folder, config_yaml({name: {split: f"{name}/{split}-*"} for name, split in kinds.items()}))
    text = pa.string()
    images = pa.schema([("id", text), ("image", HUB_IMAGE)])
    pairs = pa.list_(pa.struct([("objectId", text), ("value", text)]))
    steps = pa.list_(
        pa.struct([("operation", text), ("argument", text), ("dependencies", pa.list_(pa.int32()))])
    )
    questions = pa.schema(
        [
            *((name, text) for name in ("id", "imageId", "question", "answer", "fullAnswer")),
            ("isBalanced", pa.bool_()),
            ("groups", pa.struct([("global", text), ("local", text)])),
            ("entailed", text),
            ("equivalent", text),
            ("types", pa.struct([("structural", text), ("semantic", text), ("detailed", text)])),
            ("annotations", pa.struct([(n, pairs) for n in ("question", "answer", "fullAnswer")])),
            ("semantic", steps),
            ("semanticStr", text),
        ]
    )
    made = [
        {
            "id": f"2011{i:05d}",
            "imageId": f"n{i // 3:06d}",
            "question": f"Is the umbrella {i} upside down?",
            "answer": ("yes", "no")[i % 2],
            "fullAnswer": "Yes, the umbrella is upside down.",
            "isBalanced": True,
            "groups": {"global": None, "local": "13-umbrella_pose"},
            "entailed": "[]",
            "equivalent": "[]",
            "types": {
                "structural": ("verify", "query")[i % 2],
                "semantic": "attr",
                "detailed": "positionVerify",
            },
            "annotations": {
                n: [{"objectId": "0", "value": "umbrella"}] for n in ("question", "answer", "fullAnswer")
            },
            "semantic": [{"operation": "select", "argument": "umbrella (0)", "dependencies": []}],
            "semanticStr": "select: umbrella (0)",
        }
        for i in range(rows)
    ]
    stills = [{"id": f"n{i:06d}", "image": hub_image(f"gqa-{i}")} for i in range(-(-rows // 3))]
    parquet(folder / "testdev_balanced_instructions/testdev-{}.parquet", made, questions)
    parquet(folder / "testdev_balanced_images/testdev-{}.parquet", stills, images)


def aokvqa(folder: Path, rows: int) -> None:
    readme(
        folder,
        config_yaml(
            {"default": {"train": "data/train-*", "validation": "data/validation-*", "test": "data/test-*"}}
        ),
    )
    text, texts = pa.string(), pa.list_(pa.string())
    schema = pa.schema(
        [
            ("image", HUB_IMAGE),
            ("question_id", text),
            ("question", text),
            ("choices", texts),
            ("correct_choice_idx", pa.int8()),
            ("direct_answers", text),
            ("difficult_direct_answer", pa.bool_()),
            ("rationales", texts),
        ]
    )
    suffixes = {"train": "c1d1893b67c1ddd7", "validation": "b2bd0de231b6326a", "test": "d306bf3ad53b6618"}
    for split, count in (("train", rows), ("validation", rows // 2), ("test", rows // 2)):
        made = [
            {
                "image": hub_image(f"aokvqa-{split}-{i}"),
                "question_id": f"{split}{i:018d}",
                "question": f"What is the man by the {i} bags awaiting?",
                "choices": ["skateboarder", "train", "delivery", "cab"],
                "correct_choice_idx": None if split == "test" else i % 4,
                "direct_answers": str(["ride"] * 7 + ["it's a bus"] * 3),
                "difficult_direct_answer": False,
                "rationales": ["A man stands with luggage."] * 3,
            }
            for i in range(count)
        ]
        parquet(folder / f"data/{split}-{{}}-{suffixes[split]}.parquet", made, schema)


# ---- Files of the web -------------------------------------------------------------------------------------------


def ten(rng: Random, words: list[str]) -> list[str]:
    """Ten annotators who mostly agree."""
    return [rng.choice([words[0]] * 3 + words) for _ in range(10)]


def vizwiz(folder: Path, rows: int, seed: int) -> None:
    rng = Random(seed)
    members = []
    for split, count in (("train", rows), ("val", rows // 2), ("test", rows // 2)):
        made: list[dict[str, Any]] = []
        for i in range(count):
            words = ["unanswerable", "unsuitable image"] if i % 3 == 0 else ["soda can", "can", "coke"]
            row: dict[str, Any] = {"image": f"VizWiz_{split}_{i:08d}.jpg", "question": f"What is this? {i}"}
            if split != "test":
                row["answers"] = [
                    {"answer_confidence": "yes", "answer": answer} for answer in ten(rng, words)
                ]
                row["answer_type"] = "unanswerable" if i % 3 == 0 else "other"
                row["answerable"] = int(i % 3 != 0)
            made.append(row)
        members.append((f"{split}.json", compact(made)))
        pictures = [(f"{split}/{row['image']}", picture(row["image"])) for row in made]
        zipped(folder / f"images/{split}.zip", [(f"{split}/", b""), *pictures], stored=True)
    zipped(folder / "vqa_data/Annotations.zip", members)


def iconqa(folder: Path, rows: int) -> None:
    members: list[tuple[str, bytes]] = [("iconqa_data/LICENSE.md", b"CC BY-NC-SA 4.0")]
    for split, count, start in (("train", rows, 0), ("val", rows // 2, 1000), ("test", rows // 2, 2000)):
        for task, offset in (("choose_img", 0), ("choose_txt", 10000), ("fill_in_blank", 20000)):
            for i in range(start + offset, start + offset + count):
                place = f"iconqa_data/iconqa/{split}/{task}/{i}"
                row: dict[str, Any] = {"question": f"How likely is it that you will pick number {i}?"}
                if task == "choose_img":
                    row |= {"choices": ["choice_0.png", "choice_1.png"], "answer": i % 2}
                    members += [(f"{place}/choice_{k}.png", picture(f"c{i}-{k}", "PNG")) for k in (0, 1)]
                elif task == "choose_txt":
                    row |= {"choices": ["certain", "unlikely", "impossible", "probable"], "answer": i % 4}
                else:
                    row |= {"answer": str(i % 7)}
                row |= {"ques_type": task, "grade": "grade1", "label": "S2"}
                members += [
                    (f"{place}/image.png", picture(place, "PNG")),
                    (f"{place}/data.json", compact(row)),
                ]
    members.append(("iconqa_data/pid_splits.json", compact({"train": [], "val": [], "test": []})))
    zipped(folder / "iconqa_data.zip", members)


def coco_ids(split: str, rows: int) -> list[int]:
    return [9 + 7 * i + (0 if split == "train2014" else 100_000) for i in range(rows)]


def coco(folder: Path, rows: int) -> None:
    for split in ("train2014", "val2014"):
        names = [f"{split}/COCO_{split}_{i:012d}.jpg" for i in coco_ids(split, rows)]
        zipped(
            folder / f"{split}.zip", [(f"{split}/", b""), *((n, picture(n[:-4])) for n in names)], stored=True
        )


def vqa_files(split: str, count: int, rows: int, seed: int, ok: bool) -> tuple[bytes, bytes]:
    """Questions and annotations of the VQA challenge; ``ok``: with the further keys of OK-VQA."""
    rng = Random(f"{split}{seed}")
    head = {"info": {"year": 2017, "version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco"}
    head |= {"license": {"name": "CC BY 4.0"}, "data_subtype": split}
    images = coco_ids(split, rows)
    questions, annotations = [], []
    for i in range(count):
        image = images[i % len(images)]
        name = image * 1000 + i // len(images)
        given = ten(rng, ["net", "racket", "yes"])
        answers = [
            {"answer_id": k + 1, "answer_confidence": "yes", "answer": answer}
            | ({"raw_answer": answer} if ok else {})
            for k, answer in enumerate(given)
        ]
        questions.append({"image_id": image, "question": f"What is player {i} holding?", "question_id": name})
        row = {
            "question_type": "four" if ok else "what is",
            "answers": answers,
            "image_id": image,
            "answer_type": "other",
            "question_id": name,
        }
        annotations.append(row | ({"confidence": 3} if ok else {"multiple_choice_answer": given[0]}))
    rng.shuffle(annotations)
    return compact(head | {"questions": questions}), compact(head | {"annotations": annotations})


def okvqa(folder: Path, rows: int, seed: int) -> None:
    for split, count in (("train2014", rows), ("val2014", rows // 2)):
        questions, annotations = vqa_files(split, count, rows, seed, ok=True)
        name = f"OpenEnded_mscoco_{split}_questions.json"
        zipped(folder / f"{name}.zip", [(name, questions)])
        name = f"mscoco_{split}_annotations.json"
        zipped(folder / f"{name}.zip", [(name, annotations)])


def vqav2(folder: Path, rows: int, seed: int) -> None:
    for split, word, count in (("train2014", "Train", 3 * rows), ("val2014", "Val", 3 * (rows // 2))):
        questions, annotations = vqa_files(split, count, rows, seed, ok=False)
        zipped(
            folder / f"v2_Questions_{word}_mscoco.zip",
            [(f"v2_OpenEnded_mscoco_{split}_questions.json", questions)],
        )
        zipped(
            folder / f"v2_Annotations_{word}_mscoco.zip",
            [(f"v2_mscoco_{split}_annotations.json", annotations)],
        )


def karpathy(folder: Path, rows: int) -> None:
    """The training pictures, then those of the validation set: one of Karpathy's test split, one of "restval"."""
    places = [("train2014", "train", image) for image in coco_ids("train2014", rows)]
    places += [
        ("val2014", ("test", "restval")[number % 2], image)
        for number, image in enumerate(coco_ids("val2014", rows))
    ]
    images = []
    for number, (place, split, image) in enumerate(places):
        sentences = [
            {
                "tokens": ["a", "man"],
                "raw": f"A man with oven {image}, caption {k}.",
                "imgid": number,
                "sentid": k,
            }
            for k in range(5 + number % 2)
        ]
        images.append(
            {
                "filepath": place,
                "sentids": list(range(5)),
                "filename": f"COCO_{place}_{image:012d}.jpg",
                "imgid": number,
                "split": split,
                "sentences": sentences,
                "cocoid": image,
            }
        )
    members = [("dataset_coco.json", compact({"images": images, "dataset": "coco"}))]
    members += [
        (f"dataset_{n}.json", compact({"images": [], "dataset": n})) for n in ("flickr30k", "flickr8k")
    ]
    zipped(folder / "caption_datasets.zip", members)
