"""Malformed configuration: config.yaml, overlays, studies, models, data sets, hardware, claims."""

# ruff: noqa: E501 - one line is one case

from __future__ import annotations

import os
from typing import Any

from bad_case import (
    CONFIG,
    OWN_FILE,
    RUNS,
    SMALL,
    TINY,
    Table,
    changed,
    cli,
    nothing,
    written,
)
from bad_world import STUDIES

case = Table()

# ---- config.yaml and overlays --------------------------------------------------------------------


def config(name: str, key: str, value: Any, *says: str) -> None:
    case("config", name, changed(CONFIG, key, value), RUNS, CONFIG, *says)


def overlay(name: str, text: str | bytes, *says: str) -> None:
    case("overlay", name, written("my.yaml", text), cli("runs", "--configfile", "my.yaml"), *says)


config("unknown key", "traning", {}, "unknown key 'traning'", "did you mean 'training'")
config("unknown key, deep", "execution.devise", "cpu", "execution", "'devise'", "did you mean 'device'")
config("key missing", "lineup", ..., "key 'lineup' is missing")
config("unknown model", "lineup.models", ["tinny"], "lineup.models", "did you mean 'tiny'")
config("a name with a slash", "lineup.models", ["../models/tiny"], "lineup.models")
config("a name with a slash, data set", "lineup.datasets", ["../own"], "lineup.datasets")
config("unknown study", "studies", ["smal"], "studies", "did you mean 'small'")
config("a list where keys belong", "training", [1], "training", "expected keys with values")
config("a text where a number belongs", "training.epochs", "three", "training.epochs", "expected `int`")
config("a negative number", "training.global_batch", -4, "training.global_batch", ">= 1")
config("a number that is none", "training.weight_decay", float("nan"), "training.weight_decay", "nan")
config(
    "an endless number",
    "training.connector_learning_rate",
    float("inf"),
    "training.connector_learning_rate",
    "inf",
)
config("beta of 1", "training.beta1", 1.0, "training.beta1")
config("a share above 1", "training.warmup_ratio", 1.5, "training.warmup_ratio", "<= 1")
config("unknown schedule", "training.schedule", "cosin", "training.schedule", "cosine")
config("a seed that is a text", "seeds", ["one"], "seeds")
config("a seed beyond 64 bits", "seeds", [2**70], "seeds")
config("a negative seed", "seeds", [-1], "seeds")
config("the same seed twice", "seeds", [1, 1], "seeds", "twice")
config("unknown method", "methods", {"lorra": {}}, "methods", "did you mean 'lora'")
config("unknown setting of a method", "methods", {"lora": {"rnak": 3}}, "methods.lora", "did you mean 'rank'")
config("a method's setting of another type", "methods", {"lora": {"rank": "big"}}, "methods.lora.rank")
config("dropout of 1", "methods", {"lora": {"dropout": 1.5}}, "methods.lora.dropout")
config("unknown stand-in", "stand_ins", {"tiny": "tinny"}, "stand_ins", "did you mean 'tiny'")
config("a data set that stands in for a model", "stand_ins", {"tiny": "own"}, "own")
config("a reduction with an unknown key", "reduce", {"small": {"axs": {}}}, "'axs'")
config("results folder that is empty", "execution.results", "", "execution.results")
config("a mirror of another type", "execution.mirrors", {"https://a/": 3}, "execution.mirrors")
config(
    "key variable that is a key", "execution.judge_key_variable", "sk-123 456", "execution.judge_key_variable"
)
config("unknown package granularity", "identity.granularity", "mnior", "identity.granularity")
config("a package that is none", "identity.packages", ["torhc"], "identity.packages", "torhc")
config("null where a text belongs", "execution.results", None, "execution.results")

overlay("no YAML", "training: [1\n", "my.yaml", "line 2", "not valid YAML")
overlay("a tab", "training:\n\tepochs: 1\n", "my.yaml", "line 2")
overlay("a key twice", "training: {epochs: 1}\ntraining: {epochs: 2}\n", "my.yaml", "line 2", "twice")
overlay("a list", "- a\n- b\n", "my.yaml", "expected keys")
overlay("a mere text", "just a sentence\n", "my.yaml", "expected keys")
overlay("Latin-1", "title: \xe9t\xe9\n".encode("latin-1"), "my.yaml", "not UTF-8")
overlay("UTF-16", "training: {epochs: 1}\n".encode("utf-16"), "my.yaml", "not UTF-8")
overlay("binary", bytes(range(256)), "my.yaml")
overlay("a null byte", "training: {epochs: 1}\0\n", "my.yaml")
overlay("Python in YAML", "training: !!python/object/apply:os.system ['touch owned']\n", "my.yaml", "line 1")
overlay("an alias of nothing", "training: *base\n", "my.yaml", "line 1")
overlay("aliases without end", "a: &a [1]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}, *{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)), "my.yaml")  # fmt: skip
overlay("an alias of itself", "training: &t {epochs: *t}\n", "my.yaml")
overlay("keys that are no texts", "{1: a, [2]: b}\n", "my.yaml")
overlay("deep beyond reason", "[" * 5000, "my.yaml")
overlay("two documents", "training: {epochs: 1}\n---\ntraining: {epochs: 2}\n", "my.yaml")
overlay("git's conflict marks", "<<<<<<< HEAD\ntraining: {epochs: 1}\n=======\n", "my.yaml")
overlay("a date where a text belongs", "execution: {results: 2024-01-01}\n", "execution.results")
overlay("yes where a number belongs", "training: {epochs: yes}\n", "training.epochs")
overlay("a huge number", "training: {epochs: 1" + "0" * 5000 + "}\n", "my.yaml", "digits")
case("overlay", "not there", nothing, cli("runs", "--configfile", "none.yaml"), "none.yaml", "No such file")
case("overlay", "a folder", nothing, cli("runs", "--configfile", "config"), "config", "directory")
case("overlay", "a link to itself", lambda w: w.path("my.yaml").symlink_to("my.yaml"), cli("runs", "--configfile", "my.yaml"), "my.yaml", "symbolic link")  # fmt: skip
case("config", "config.yaml is empty", written(CONFIG, ""), RUNS, CONFIG, "'lineup' is missing")
case("config", "config.yaml is not there", lambda w: w.path(CONFIG).unlink(), RUNS, CONFIG, "No such file")
case("config", "config.yaml is a list", written(CONFIG, "- a\n"), RUNS, CONFIG, "expected keys")
case(
    "config",
    "no project at all",
    nothing,
    cli("runs", "--root", "my_data"),
    "config/config.yaml",
    "No such file",
)

# ---- studies -------------------------------------------------------------------------------------


def study(name: str, key: str, value: Any, *says: str) -> None:
    case("study", name, changed(SMALL, key, value), RUNS, SMALL, *says)


study("unknown key", "titel", "x", "did you mean 'title'")
study("no axes", "axes", ..., "key 'axes' is missing")
study("axes that are a list", "axes", ["model"], "axes")
study("an axis without a value", "axes.method", [], "axes.method", "no value")
study("an axis that is null", "axes.method", None, "axes.method")
study("unknown model", "axes.model", "tinny", "axes.model", "did you mean 'tiny'")
study("a model that is a number", "axes.model", 3, "axes.model", "3")
study("a model that is a list of lists", "axes.model", [["tiny"]], "axes.model")
study("a model that is a mapping", "axes.model", {"name": "tiny"}, "axes.model")
study("unknown data set", "axes.dataset", ["onw"], "axes.dataset", "did you mean 'own'")
study("unknown method", "axes.method", "lorra", "axes.method", "did you mean 'lora'")
study("a method with dots", "axes.method", "../lora", "axes.method")
study("base as a method", "axes.method", "base", "axes.method", "include_base: true")
study("unknown axis", "axes.epohcs", 3, "axes.epohcs", "did you mean 'epochs'")
study("another type on an axis", "axes.epochs", [1, "two"], "axes.epochs")
study("a fraction of examples", "axes.train_size", 0.5, "axes.train_size", "0.5")
study("more examples than there are", "axes.train_size", 9, "axes.train_size", "8 examples", "take fewer")
study("an epoch that there is not", "axes.epoch", 7, "axes.epoch", "training.epochs")
study("a location that no prefix has", "axes", STUDIES["small"]["axes"] | {"method": "prefix", "location": "mlp"}, "axes.location", "exclude")  # fmt: skip
study("an unknown location", "axes.location", "head", "axes.location", "'head'")
study("a seed of yes", "axes.seed", [True], "axes.seed")
study("the same value twice", "axes.connector", ["tuned", "tuned"], "axes.connector", "twice")
study("unknown columns", "columns", "datset", "columns", "did you mean 'dataset'")
study("a row twice", "rows", ["method", "method"], "rows", "twice")
study("unknown kind", "kind", "tabel", "kind", "did you mean 'table'")
study("a kind with dots", "kind", "..table", "kind")
study("unknown figure", "figure", "dotts", "figure", "did you mean 'dots'")
study("unknown metric", "metric", {"name": "vqa_scroe"}, "metric.name", "did you mean 'vqa_score'")
study("unknown setting of a metric", "metric", {"name": "vqa_score", "settings": {"varient": "official"}}, "metric.settings", "did you mean 'variant'")  # fmt: skip
study("extends itself", "extends", "small", "extends", "break the circle")
study("extends an unknown one", "extends", "smoll", "extends", "did you mean 'small'")
study("extends a number", "extends", 3, "extends")
study("excludes everything", "exclude", [{"method": "lora"}], "exclude")
study("excludes an unknown axis", "exclude", [{"methd": "lora"}], "exclude[0]", "did you mean 'method'")
study(
    "excludes a value that there is not",
    "exclude",
    [{"method": "lorra"}],
    "exclude[0].method",
    "did you mean 'lora'",
)
study("published file missing", "published", {"file": "tabel1"}, "published", "tabel1")
study("published file outside", "published", {"file": "../../secret"}, "published")
study(
    "published column missing",
    "published",
    {"file": "table1", "value": "scor"},
    "published",
    "did you mean 'score'",
)
study("a published template of Python", "published", {"file": "table1", "columns": {"method": "{method.__class__}"}}, "published")  # fmt: skip
study(
    "a broken published template",
    "published",
    {"file": "table1", "columns": {"method": "{method"}},
    "published",
)
study("a scale of words", "published", {"file": "table1", "scale": {"own": "x"}}, "published.scale")
study("a factor of 0", "tuning", {"factors": []}, "tuning.factors")
study("the same trial twice", "tuning", {"factors": [1, 1]}, "tuning.factors")
study("validation of everything", "tuning", {"factors": [1], "validation": 1.0}, "tuning.validation")
study("a group that is a study", "group", "small", "group")
study("a group that is a rule", "group", "all", "group")
case("study", "a file name that is no target", lambda w: w.yaml("config/studies/My-Study.yaml", STUDIES["small"]), cli("studies"), "My-Study")  # fmt: skip
case("study", "a study called as a rule", lambda w: w.yaml("config/studies/all.yaml", STUDIES["small"]), cli("studies"), "all")  # fmt: skip
case("study", "an empty file", written(SMALL, ""), RUNS, SMALL, "expected keys")
case("study", "not UTF-8", written(SMALL, "title: \xe9".encode("latin-1")), RUNS, SMALL, "not UTF-8")
case(
    "study",
    "a link to nothing",
    lambda w: (w.path(SMALL).unlink(), w.path(SMALL).symlink_to("gone")),
    RUNS,
    SMALL,
)
case("study", "a link to itself", lambda w: (w.path(SMALL).unlink(), w.path(SMALL).symlink_to("small.yaml")), RUNS, SMALL)  # fmt: skip
case("study", "a folder called so", lambda w: (w.path(SMALL).unlink(), w.path(SMALL).mkdir()), RUNS, SMALL)

# ---- models --------------------------------------------------------------------------------------


def model(name: str, key: str, value: Any, *says: str) -> None:
    case("model", name, changed(TINY, key, value), RUNS, TINY, *says)


model("unknown key", "tilte", "x", "did you mean 'title'")
model("no names", "names", ..., "key 'names' is missing")
model("no source", "source", ..., "key 'source' is missing")
model("unknown kind of source", "source.kind", "tinny", "source", "did you mean 'tiny'")
model("a kind with dots", "source.kind", "..weights", "source")
model("a source that is a list", "source", ["tiny"], "source")
model("unknown key of the source", "source.sha", "x", "source", "sha")
model("a hub source from nowhere", "source", {"kind": "hub"}, "source", "from")
model("a repository without owner", "source", {"kind": "hub", "from": {"model": {"hub": "llava"}}}, "source.from.model", "owner/name")  # fmt: skip
model("a repository that leaves", "source", {"kind": "hub", "from": {"model": {"hub": "../secrets"}}}, "source.from.model", "owner/name")  # fmt: skip
model("hub and path at once", "source", {"kind": "hub", "from": {"model": {"hub": "a/b", "path": "x"}}}, "source.from.model", "exactly one")  # fmt: skip
model("a password in an address", "source", {"kind": "hub", "from": {"model": {"url": "https://me:secret@h/x.zip"}}}, "source.from.model")  # fmt: skip
model("a revision that is a number", "source", {"kind": "hub", "from": {"model": {"hub": "a/b", "revision": 1}}}, "source.from.model", "revision")  # fmt: skip
model("layers that are no pattern", "names.layers", "layers.(\\d+", "names.layers")
model("unknown template", "names.template", "plian", "names.template", "did you mean 'plain'")
model("a template outside", "names.template", "../../../x", "names.template")
model("code that there is not", "names.code", "qwen_vll", "names.code")
model("unknown architecture", "architecture", "tiny-lava", "architecture", "did you mean 'tiny-llava'")
model("an architecture outside", "architecture", "../config", "architecture")
model("negative parameters", "parameters", {"language": -1}, "parameters")
model("unknown precision", "precision", "fp8", "precision")
model("unknown training setting", "training", {"epoch": 1}, "training", "did you mean 'epochs'")
model("unknown method", "methods", {"lorra": {}}, "methods", "did you mean 'lora'")
model("extends itself", "extends", "tiny", "extends", "break the circle")
case("model", "a broken architecture", written("config/architectures/tiny-llava.json", "{"), cli("plan", "small", "--hardware", "cpu-2-cores"), "config/architectures/tiny-llava.json")  # fmt: skip
case("model", "an architecture that is a list", written("config/architectures/tiny-llava.json", "[]"), cli("plan", "small", "--hardware", "cpu-2-cores"), "config/architectures/tiny-llava.json")  # fmt: skip

# ---- data set files ------------------------------------------------------------------------------


def dataset(name: str, key: str, value: Any, *says: str) -> None:
    case("data set", name, changed(OWN_FILE, key, value), RUNS, OWN_FILE, *says)


SPLIT = {"rows": {"in": "own", "file": "train.csv"}}
dataset("unknown key", "tilte", "x", "did you mean 'title'")
dataset("no test split", "splits", {"train": 8}, "splits", "'test' is missing")
dataset("a negative split", "splits.train", -1, "splits")
dataset("a split with a slash", "splits", {"train": 8, "test": 4, "../x": 1}, "splits")
dataset("no templates", "prompt.templates", [], "prompt.templates")
dataset(
    "an unknown place in a template",
    "prompt.templates",
    ["{qestion}"],
    "prompt.templates",
    "did you mean 'question'",
)
dataset("Python in a template", "prompt.templates", ["{question.__class__}"], "prompt.templates")
dataset("a brace that is not closed", "prompt.templates", ["{question"], "prompt.templates")
dataset("unknown metric", "metric.name", "vqa_scroe", "metric.name", "did you mean 'vqa_score'")
dataset("a metric with dots", "metric.name", "..vqa_score", "metric.name")
dataset("unknown setting of the metric", "metric", {"name": "exact_match", "settings": {"strict": 1}}, "metric.settings", "strictness")  # fmt: skip
dataset("0 new tokens", "decoding.max_new_tokens", 0, "decoding.max_new_tokens", ">= 1")
dataset("seen: maybe", "seen", "maybe", "seen")
dataset("unknown kind of source", "source.kind", "tabel", "source", "did you mean 'table'")
dataset(
    "unknown generator",
    "source",
    {"kind": "embedded", "generator": "okvq"},
    "generator",
    "did you mean 'okvqa'",
)
dataset("a generator with dots", "source", {"kind": "embedded", "generator": "..prepare"}, "generator")
dataset("from that is a text", "source.from", "my_data", "source.from")
dataset("an origin without a place", "source.from", {"own": {}}, "source.from.own", "hub, url and path")
dataset(
    "a path that is not there",
    "source.from",
    {"own": {"path": "my_dta"}},
    "source.from.own",
    "my_dta",
    "No such file",
)
dataset(
    "an address of another kind", "source.from", {"own": {"url": "ftp://x/y.zip"}}, "source.from.own", "http"
)
dataset("a sha256 that is none", "source.from", {"own": {"url": "https://x/y.zip", "sha256": "abc"}}, "source.from.own", "sha256")  # fmt: skip
dataset(
    "an unknown origin",
    "source.splits.train.rows.in",
    "onw",
    "source.splits.train.rows.in",
    "did you mean 'own'",
)
dataset(
    "an unknown key of a split",
    "source.splits.train.rows.fil",
    "x",
    "source.splits.train.rows",
    "did you mean 'file'",
)
dataset("an expression that is none", "source.row.question", "question | lowr", "source.row.question", "did you mean 'lower'")  # fmt: skip
dataset("an unclosed expression", "source.row.id", "{file", "source.row.id")
dataset("no answers at all", "source.row", {"question": "question"}, "source.row", "answers")
dataset("a split that source lacks", "source.splits", {"train": SPLIT}, "source.splits", "'test'")
dataset("a picture without a name", "source.image", {"in": "own"}, "source.image", "'name' is missing")
dataset("a sample of -1", "source.splits.train.sample", {"take": -1}, "source.splits.train.sample.take")
case("data set", "a path that is a link to itself", lambda w: (w.path("loop").symlink_to("loop"), w.change(OWN_FILE, "source.from", {"own": {"path": "loop"}})), RUNS, OWN_FILE, "source.from.own", "loop")  # fmt: skip
case("data set", "a folder that holds itself", lambda w: w.path("my_data/again").symlink_to(".."), RUNS, OWN_FILE, "source.from.own", "again")  # fmt: skip
case("data set", "a link to nothing in the data", lambda w: w.path("my_data/gone.png").symlink_to("nowhere"), RUNS, OWN_FILE, "source.from.own", "gone.png")  # fmt: skip
case("data set", "a pipe in the data", lambda w: os.mkfifo(w.path("my_data/pipe")), RUNS, OWN_FILE, "source.from.own", "pipe")  # fmt: skip

# ---- hardware, planning, claims ------------------------------------------------------------------

CPU = "config/hardware/cpu-2-cores.yaml"
PLAN = cli("plan", "small", "--hardware", "cpu-2-cores")
for _name, _key, _value, *_says in (
    ("a machine without memory", "memory", 0, "memory", "> 0"),
    ("a machine of endless speed", "fp32_flops", float("inf"), "fp32_flops", "inf"),
    ("efficiency above 1", "efficiency.train", 3, "efficiency.train", "<= 1"),
    ("unknown kind", "kind", "tpu", "kind"),
    ("unknown key", "watt", 3, "did you mean 'watts'"),
    ("key missing", "cores", ..., "'cores' is missing"),
):
    case("hardware", _name, changed(CPU, _key, _value), PLAN, CPU, *_says)
case(
    "hardware",
    "unknown hardware",
    nothing,
    cli("plan", "small", "--hardware", "cpu-2-core"),
    "did you mean 'cpu-2-cores'",
)
case(
    "hardware",
    "a negative price",
    nothing,
    cli("plan", "small", "--hardware", "cpu-2-cores", "--price", "-1"),
    "--price",
)
case("hardware", "hardware by a path", nothing, cli("plan", "--hardware", "../models/tiny"), "hardware")
case("planning", "unknown assumption", changed("config/planning.yaml", "charcters_per_token", 4), PLAN, "config/planning.yaml", "did you mean 'characters_per_token'")  # fmt: skip
case("planning", "0 characters a token", changed("config/planning.yaml", "characters_per_token", 0), PLAN, "config/planning.yaml", "characters_per_token")  # fmt: skip

CLAIMS = "config/claims.yaml"
CLAIM = "claims.adapter_best"
for _name, _key, _value, *_says in (
    ("unknown statistic", f"{CLAIM}.test.statistic", "bst", f"{CLAIM}.test.statistic", "did you mean 'best'"),
    ("unknown axis", f"{CLAIM}.test.blocks", ["datset"], f"{CLAIM}.test", "did you mean 'dataset'"),
    (
        "unknown table",
        f"{CLAIM}.published.table",
        "tabel1",
        f"{CLAIM}.published.table",
        "did you mean 'table1'",
    ),
    ("a table outside", f"{CLAIM}.published.table", "../../x", f"{CLAIM}.published.table"),
    ("no quote", f"{CLAIM}.quote", ..., CLAIM, "'quote' is missing"),
    ("an id with a space", "claims", {"a b": {}}, "claims.a b", "lower-case"),
    ("claims that are a list", "claims", [], "claims"),
):
    case("claims", _name, changed(CLAIMS, _key, _value), cli("claims"), CLAIMS, *_says)
case("claims", "a published table that is binary", written("paper/tables/table1.csv", bytes(range(256))), cli("claims"), "table1.csv", "not UTF-8")  # fmt: skip
case("claims", "a published number that is none", lambda w: w.edit("paper/tables/table1.csv", lambda b: b.replace(b"60", b"sixty")), cli("claims"), "table1.csv", "sixty")  # fmt: skip
case("claims", "a published line that is short", lambda w: w.edit("paper/tables/table1.csv", lambda b: b + b"tiny,own\n"), cli("claims"), "table1.csv", "line 8")  # fmt: skip
