"""Damaged results: checkpoints, weights, records, tickets, prepared data; and an environment that does not fit."""

# ruff: noqa: E501 - one line is one case

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_case import (
    BUILT,
    CONFIG,
    PREPARED,
    RUN,
    RUNS,
    Call,
    Damage,
    Table,
    cli,
    each,
    job,
    nothing,
    written,
)
from bad_world import Outcome, World

case = Table()
ADAPTER = f"{RUN}/adapter/adapter_model.safetensors"
CONNECTOR = f"{RUN}/connector.safetensors"
WEIGHTS = f"{BUILT}/model.safetensors"
PREDICT, TRAIN, SCORE, TABULATE = job("predict"), job("train"), job("score"), job("tabulate")


def result(area: str, name: str, damage: Damage, call: Call, *says: str, **options: Any) -> None:
    """On the finished study."""
    case(area, name, damage, call, *says, results=True, **options)


def unverified(damage: Damage, folder: str = RUN) -> Damage:
    """Where the record has no checksums: what reads the file has to see what is wrong."""
    return each(
        damage,
        lambda w: w.change(str(w.path(f"{folder}/record.json").relative_to(w.root)), "facts.outputs", ...),
    )


def bytes_of(file: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda w: w.edit(file, change)


def tensors(file: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Other tensors in a file of weights."""

    def damage(w: World) -> None:
        from safetensors.torch import load_file, save

        found = load_file(w.path(file))
        change(found)
        w.write(file, save(found, metadata={"format": "pt"}))

    return damage


def first_renamed(found: dict[str, Any]) -> None:
    name = min(found)
    found[name + ".x"] = found.pop(name)


def first_cut(found: dict[str, Any]) -> None:
    name = min(found)
    found[name] = found[name].flatten()[:3].clone()


def header_of(length: int, text: bytes = b"{}") -> bytes:
    return struct.pack("<Q", length) + text


class _Owned:
    """What unpickling it does."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


def gone(file: str) -> Damage:
    return lambda w: w.path(file).unlink()


def as_folder(file: str) -> Damage:
    def damage(w: World) -> None:
        path = w.path(file)
        path.unlink()
        path.mkdir()

    return damage


def looped(file: str) -> Damage:
    def damage(w: World) -> None:
        path = w.path(file)
        path.unlink()
        path.symlink_to(path.name)

    return damage


# ---- checkpoints and weights ---------------------------------------------------------------------

for _what, _file, _call in (("adapter", ADAPTER, PREDICT), ("connector", CONNECTOR, PREDICT)):
    _name = Path(_file).name
    result(
        "weights",
        f"{_what} cut off",
        unverified(bytes_of(_file, lambda b: b[: len(b) // 2])),
        _call,
        _name,
        "train again",
    )
    result("weights", f"{_what} with a tensor of another name", unverified(tensors(_file, first_renamed)), _call, _name, "not those of this model")  # fmt: skip
    result(
        "weights",
        f"{_what} with a tensor of another shape",
        unverified(tensors(_file, first_cut)),
        _call,
        _name,
        "(3,)",
    )
result(
    "weights",
    "adapter not there",
    unverified(gone(ADAPTER)),
    PREDICT,
    "adapter_model.safetensors",
    "train this run first",
)
result("weights", "adapter empty", unverified(bytes_of(ADAPTER, lambda b: b"")), PREDICT, "adapter_model.safetensors", "train again")  # fmt: skip
result("weights", "adapter with one bit changed", bytes_of(ADAPTER, lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:]), PREDICT, "adapter_model.safetensors", "sha256")  # fmt: skip
result("weights", "adapter with a header of 2^60 bytes", unverified(bytes_of(ADAPTER, lambda b: header_of(2**60))), PREDICT, "adapter_model.safetensors", "train again")  # fmt: skip
result("weights", "adapter that is a pickle with code", unverified(bytes_of(ADAPTER, lambda b: pickle.dumps(_Owned()))), PREDICT, "adapter_model.safetensors", "train again")  # fmt: skip
result(
    "weights",
    "adapter that is a folder",
    unverified(as_folder(ADAPTER)),
    PREDICT,
    "adapter_model.safetensors",
)
result(
    "weights",
    "adapter that is a link to itself",
    unverified(looped(ADAPTER)),
    PREDICT,
    "adapter_model.safetensors",
)
result("weights", "base model cut off", bytes_of(WEIGHTS, lambda b: b[:-1000]), TRAIN, "results/models/tiny-")
result(
    "weights",
    "base model with a tensor too few",
    tensors(WEIGHTS, lambda t: t.pop(min(t))),
    TRAIN,
    "missing keys",
)
result(
    "weights",
    "base model with a tensor of another shape",
    tensors(WEIGHTS, first_cut),
    TRAIN,
    "results/models/tiny-",
)
result("weights", "base model's weights not there", gone(WEIGHTS), TRAIN, "results/models/tiny-")
result("weights", "base model's weights as a pickle", each(gone(WEIGHTS), lambda w: w.write(str(w.path(BUILT).relative_to(w.root)) + "/pytorch_model.bin", pickle.dumps(_Owned()))), TRAIN, "results/models/tiny-")  # fmt: skip
result(
    "weights", "base model's configuration not there", gone(f"{BUILT}/config.json"), TRAIN, "no config.json"
)
result("weights", "base model's configuration cut off", bytes_of(f"{BUILT}/config.json", lambda b: b[:40]), TRAIN, "config.json")  # fmt: skip
result("weights", "base model's configuration of a list", bytes_of(f"{BUILT}/config.json", lambda b: b"[]"), TRAIN, "results/models/tiny-")  # fmt: skip
result("weights", "base model of an unknown kind", lambda w: w.change(str(w.path(f"{BUILT}/config.json").relative_to(w.root)), "model_type", "llavva"), TRAIN, "results/models/tiny-", "llavva")  # fmt: skip
result("weights", "tokenizer cut off", bytes_of(f"{BUILT}/tokenizer.json", lambda b: b[:100]), TRAIN, "results/models/tiny-")  # fmt: skip
result("weights", "tokenizer not there", gone(f"{BUILT}/tokenizer.json"), TRAIN, "results/models/tiny-")
result(
    "weights",
    "processor not there",
    each(gone(f"{BUILT}/processor_config.json")),
    TRAIN,
    "results/models/tiny-",
)

# ---- prepared data, subsets, predictions, scores -------------------------------------------------

SUBSET = "results/subsets/own/full-*/ids.parquet"
ANSWERS = f"{RUN}/predictions-*/predictions.parquet"
SCORES = f"{RUN}/predictions-*/scores-*"


def rows_of(file: str, change: Callable[[list[dict[str, Any]]], Any]) -> Damage:
    """Other rows in a parquet file."""

    def damage(w: World) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = w.path(file)
        found = pq.read_table(path)
        rows = found.to_pylist()
        changed_rows = change(rows)
        rows = rows if changed_rows is None else changed_rows
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=found.schema), sink)
        w.write(str(path.relative_to(w.root)), sink.getvalue().to_pybytes())

    return damage


result("prepared", "training split cut off", bytes_of(f"{PREPARED}/train.parquet", lambda b: b[:-30]), TRAIN, "train.parquet", "delete the folder")  # fmt: skip
result(
    "prepared",
    "test split not there",
    gone(f"{PREPARED}/test.parquet"),
    PREDICT,
    "test.parquet",
    "delete the folder",
)
result("prepared", "a split of other columns", lambda w: w.write(str(w.path(f"{PREPARED}/train.parquet").relative_to(w.root)), w.path(SUBSET).read_bytes()), TRAIN, "train.parquet", "not a prepared data set")  # fmt: skip
result("prepared", "a picture not there", lambda w: [p.unlink() for p in w.root.glob("results/images/*/*")], TRAIN, "results/images/", "image is missing")  # fmt: skip
result("prepared", "a picture changed", lambda w: [w.write(str(p.relative_to(w.root)), b"x") for p in w.root.glob("results/images/*/*")], TRAIN, "results/images/", "corrupt")  # fmt: skip
result("prepared", "a picture named as a way out", rows_of(f"{PREPARED}/train.parquet", lambda r: r[0].update(image="../../../etc/passwd")), TRAIN, "etc/passwd", "no name of a picture")  # fmt: skip
result("subset", "cut off", bytes_of(SUBSET, lambda b: b[:-30]), TRAIN, "ids.parquet", "delete the folder")
result("subset", "an id that there is not", rows_of(SUBSET, lambda r: r[0].update(id="nobody")), TRAIN, "train.parquet", "nobody")  # fmt: skip
result(
    "subset", "an id twice", rows_of(SUBSET, lambda r: r.append(dict(r[0]))), TRAIN, "ids.parquet", "twice"
)
result("subset", "empty", rows_of(SUBSET, lambda r: r.clear()), TRAIN, "ids.parquet")
result("subset", "a column of another name", lambda w: w.write(str(w.path(SUBSET).relative_to(w.root)), _one_column()), TRAIN, "ids.parquet")  # fmt: skip
result(
    "predictions",
    "cut off",
    unverified(bytes_of(ANSWERS, lambda b: b[:-30]), f"{RUN}/predictions-*"),
    SCORE,
    "predictions.parquet",
    "delete the folder",
)
result("predictions", "an answer too few", unverified(rows_of(ANSWERS, lambda r: r.pop() and None), f"{RUN}/predictions-*"), SCORE, "predictions.parquet", "no prediction for")  # fmt: skip
result("predictions", "an answer twice", unverified(rows_of(ANSWERS, lambda r: r.append(dict(r[0]))), f"{RUN}/predictions-*"), SCORE, "predictions.parquet", "twice")  # fmt: skip
result("predictions", "an answer that is null", unverified(rows_of(ANSWERS, lambda r: r[0].update(prediction=None)), f"{RUN}/predictions-*"), SCORE, "not a string")  # fmt: skip
result("scores", "examples cut off", bytes_of(f"{SCORES}/examples.parquet", lambda b: b[:-30]), job("report"), "examples.parquet")  # fmt: skip
result(
    "scores",
    "the table cut off",
    lambda w: w.write("results/tables/small.csv", "model,dat"),
    job("plot"),
    "small.csv",
)


def _one_column() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"name": ["a"]}), sink)
    return sink.getvalue().to_pybytes()


# ---- records -------------------------------------------------------------------------------------


def record(file: str, key: str, value: Any) -> Damage:
    return lambda w: w.change(str(w.path(f"{file}/record.json").relative_to(w.root)), key, value)


result("record", "half written", bytes_of(f"{BUILT}/record.json", lambda b: b[: len(b) // 2]), TRAIN, "models/tiny-", "record.json", "not a record")  # fmt: skip
result(
    "record", "empty", bytes_of(f"{BUILT}/record.json", lambda b: b""), TRAIN, "record.json", "not a record"
)
result(
    "record",
    "a list",
    bytes_of(f"{BUILT}/record.json", lambda b: b"[]"),
    TRAIN,
    "record.json",
    "not a record",
)
result("record", "not UTF-8", bytes_of(f"{BUILT}/record.json", lambda b: b'{"\xff": 1}'), TRAIN, "record.json", "not a record")  # fmt: skip
result("record", "nested without end", bytes_of(f"{BUILT}/record.json", lambda b: b"[" * 100_000), TRAIN, "record.json", "not a record")  # fmt: skip
result("record", "unknown field", record(BUILT, "extra", 1), TRAIN, "record.json", "extra")
result(
    "record", "another digest", record(BUILT, "digest", "0" * 16), TRAIN, "record.json", "belongs to digest"
)
result(
    "record",
    "another setting",
    record(BUILT, "spec.model", "huge"),
    TRAIN,
    "record.json",
    "belongs to digest",
)
result("record", "NaN among the settings", record(BUILT, "spec.parameters", {"language": float("nan")}), TRAIN, "record.json", "not a record")  # fmt: skip
result("record", "of another result", lambda w: w.write(str(w.path(f"{BUILT}/record.json").relative_to(w.root)), w.path(f"{PREPARED}/record.json").read_bytes()), TRAIN, "record.json", "digest")  # fmt: skip
result("record", "not there", gone(f"{BUILT}/record.json"), TRAIN, "record.json", "run snakemake to make it")
result("record", "a link to itself", looped(f"{BUILT}/record.json"), TRAIN, "record.json", "symbolic link")
result("record", "outputs that lie elsewhere", record(RUN, "facts.outputs", {"../../../config/config.yaml": "0" * 64}), PREDICT, "record.json", "../../../config/config.yaml")  # fmt: skip

# ---- tickets, and scripts by hand ----------------------------------------------------------------


def ticket(change: Callable[[dict[str, Any]], Any]) -> Call:
    def call(w: World) -> Outcome:
        _, planned = w.job_of("train")
        content = json.loads(planned.ticket)
        change(content)
        return w.job("train", ticket=json.dumps(content))

    return call


result(
    "ticket",
    "not there",
    nothing,
    job("train", ticket="none.json"),
    "--ticket",
    "none.json",
    "peftbench ticket",
)
result("ticket", "a folder", nothing, job("train", ticket="config"), "--ticket", "config")
result("ticket", "half written", nothing, job("train", ticket='{"stage": "tr'), "--ticket", "not a ticket")
result(
    "ticket", "no ticket but JSON", nothing, job("train", ticket="{}"), "--ticket", "not a ticket", "stage"
)
result(
    "ticket",
    "not UTF-8",
    written("t.json", b'{"\xff": 1}'),
    job("train", ticket="t.json"),
    "--ticket",
    "not a ticket",
)
result(
    "ticket",
    "nested without end",
    nothing,
    job("train", ticket='{"spec":' * 50_000),
    "--ticket",
    "not a ticket",
)
result("ticket", "of another stage", nothing, ticket(lambda t: t.update(stage="score")), "--ticket", "use score_predictions.py")  # fmt: skip
result(
    "ticket",
    "of a stage that there is not",
    nothing,
    ticket(lambda t: t.update(stage="trian")),
    "--ticket",
    "trian",
)
result(
    "ticket",
    "a spec that lacks a field",
    nothing,
    ticket(lambda t: t["spec"].pop("seed")),
    "--ticket",
    "seed",
)
result(
    "ticket",
    "a spec of a method that there is not",
    nothing,
    ticket(lambda t: t["spec"].update(method="lorra")),
    "lorra",
)
result("ticket", "a spec of a method with dots", nothing, ticket(lambda t: t["spec"].update(method="..job")), "--ticket", "method")  # fmt: skip
result("ticket", "a template outside", nothing, ticket(lambda t: t["spec"]["model"].update(template="../../../x")), "x.jinja")  # fmt: skip
result("ticket", "of other code", nothing, ticket(lambda t: t["code"]["modules"].update({"training.loop": "0" * 64})), "training.loop", "run snakemake again")  # fmt: skip
result("ticket", "another seed", nothing, ticket(lambda t: t["spec"].update(seed=7)), "belongs to digest", "run snakemake again")  # fmt: skip
result("ticket", "code that is a list", nothing, ticket(lambda t: t.update(code=[])), "--ticket", "code")
result("script", "inputs missing", nothing, job("train", inputs=[]), "--inputs", "'base'")
result("script", "an input that is another result", nothing, lambda w: w.job("train", inputs=[str(w.path(f"{SCORES}/record.json").relative_to(w.root))]), "scores-", "no input of this job")  # fmt: skip
result("script", "execution that is no JSON", nothing, job("train", execution="{device: cpu}"), "--execution")
result(
    "script",
    "unknown execution setting",
    nothing,
    job("train", execution='{"devise": "cpu"}'),
    "--execution",
    "devise",
)
result("script", "execution that is a list", nothing, job("train", execution="[]"), "--execution")
result("script", "a GPU that is not there", nothing, job("train", execution='{"device": "cuda", "worker": "none"}'), "no usable GPU", "device: auto")  # fmt: skip
result(
    "script",
    "an output whose name has no digest",
    nothing,
    job("train", output="results/x/record.json"),
    "digest",
)

# ---- environment ---------------------------------------------------------------------------------


def closed(name: str) -> Damage:
    """Nobody may read it."""

    def damage(w: World) -> None:
        path = w.path(name)
        if path.is_file():
            path = w.write(
                str(path.relative_to(w.root)), path.read_bytes()
            )  # a copy: modes are those of all links
        path.chmod(0)

    return damage


case(
    "environment",
    "config.yaml may not be read",
    closed(CONFIG),
    RUNS,
    CONFIG,
    "Permission denied",
    unprivileged=True,
)
case("environment", "the data may not be read", closed("my_data/train.csv"), RUNS, "config/datasets/own.yaml", "my_data/train.csv", "Permission denied", unprivileged=True)  # fmt: skip
case("environment", "a folder of data may not be read", closed("my_data/pictures"), RUNS, "config/datasets/own.yaml", "my_data/pictures", "Permission denied", unprivileged=True)  # fmt: skip
case("environment", "results may not be written", nothing, job("build"), "results", "no permission to write", unprivileged=True)  # fmt: skip
case("environment", "results is a file", written("results", "x"), job("build"), "results")
case("environment", "results is a link to nothing", lambda w: w.path("results").symlink_to("/nonexistent/place"), job("build"), "results")  # fmt: skip
case("environment", "results is a link to itself", lambda w: w.path("results").symlink_to("results"), job("build"), "results")  # fmt: skip
result("environment", "a record may not be read", closed(f"{BUILT}/record.json"), TRAIN, "record.json", "Permission denied", unprivileged=True)  # fmt: skip
result("environment", "weights may not be read", closed(ADAPTER), PREDICT, "adapter_model.safetensors", "Permission denied", unprivileged=True)  # fmt: skip
result("environment", "a plan where nobody may write", nothing, cli("plan", "small", "--hardware", "cpu-2-cores", "--csv", "plan.csv"), "plan.csv", "no permission to write", unprivileged=True)  # fmt: skip
