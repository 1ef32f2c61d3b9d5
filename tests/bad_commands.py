"""Malformed command lines: ``peftbench``, the metrics' files, the workflow's targets and scripts."""

# ruff: noqa: E501 - one line is one case

from __future__ import annotations

import zipfile
from typing import Any

from bad_case import (
    BUILT,
    CONFIG,
    OWN_FILE,
    SMALL,
    Call,
    Damage,
    Table,
    changed,
    cli,
    each,
    nothing,
    process,
    written,
)
from bad_world import Outcome, World
from peftbench.stages import RULES

case = Table()
GOOD = '{"id": 1, "prediction": "red"}\n{"id": 2, "prediction": "blue"}\n'
TRUTH = '{"id": 1, "answers": ["red"]}\n{"id": 2, "answers": ["blue"]}\n'
SCORE = ("score", "--metric", "exact_match", "--predictions", "p.jsonl", "--references", "r.jsonl")


def score(
    name: str, predictions: str | bytes, references: str | bytes, *says: str, call: Call | None = None
) -> None:
    """The metrics on their own; per-example scores are asked for, and must not be left behind."""
    damage = each(written("p.jsonl", predictions), written("r.jsonl", references))
    case("score", name, damage, call or cli(*SCORE, "--per-example", "out.jsonl"), *says)


def options(*more: str, metric: str = "exact_match") -> Call:
    return cli("score", "--metric", metric, "--predictions", "p.jsonl", "--references", "r.jsonl", *more)


score("no predictions", "", TRUTH, "p.jsonl", "empty")
score("no references", GOOD, "", "r.jsonl", "empty")
score("an id without prediction", GOOD[:31], TRUTH, "p.jsonl", "no prediction for id 2")
score(
    "an id without reference",
    GOOD + '{"id": 3, "prediction": "x"}\n',
    TRUTH,
    "p.jsonl",
    "id 3",
    "no reference",
)
score("an id twice", GOOD + GOOD[:31], TRUTH, "p.jsonl", "id 1", "twice")
score("a reference twice", GOOD, TRUTH + TRUTH[:30], "r.jsonl", "id 1", "twice")
score("half a line", GOOD[:-10], TRUTH, "p.jsonl", "line 2", "not JSON")
score("a line that is a list", "[1]\n" + GOOD, TRUTH, "p.jsonl")
score(
    "a prediction that is a number", '{"id": 1, "prediction": 3}\n', TRUTH, "p.jsonl", "line 1", "prediction"
)
score(
    "a prediction that is null", '{"id": 1, "prediction": null}\n', TRUTH, "p.jsonl", "line 1", "prediction"
)
score("an id that is an object", '{"id": {}, "prediction": "x"}\n', TRUTH, "p.jsonl", "line 1", "id")
score("predictions in Latin-1", GOOD.replace("red", "\xe9").encode("latin-1"), TRUTH, "p.jsonl", "UTF-8")
score("predictions in UTF-16", GOOD.encode("utf-16"), TRUTH, "p.jsonl")
score("predictions that are binary", bytes(range(256)), TRUTH, "p.jsonl", "line 1")
score("nested without end", '{"id": ' + "[" * 100_000 + "\n", TRUTH, "p.jsonl", "line 1")
score("references without answers", GOOD, '{"id": 1}\n{"id": 2}\n', "no answers")
score("references without ids", GOOD, '{"answers": ["a"]}\n', "r.jsonl", "id")
score("answers that are a text", GOOD, '{"id": 1, "answers": "red"}\n', "r.jsonl", "line 1", "answers")
score("an unknown metric", GOOD, TRUTH, "did you mean 'exact_match'", call=options(metric="exact_macth"))
score("a metric with dots", GOOD, TRUTH, "unknown metric", call=options(metric="..job"))
score("an unknown variant", GOOD, TRUTH, "strictness", "lenient", call=options("--variant", "lenent"))
score(
    "an unknown setting",
    GOOD,
    TRUTH,
    "did you mean 'strictness'",
    call=options("--set", "strictnes=official"),
)
score("a setting without a value", GOOD, TRUTH, "--set", "NAME=VALUE", call=options("--set", "strictness"))
score("a confidence of 2", GOOD, TRUTH, "confidence", call=options("--set", "confidence=2"))
score("replicates without end", GOOD, TRUTH, "replicates", call=options("--set", "replicates=1e30"))
score("an official file that is none", GOOD, '{"annotations": [{"question_id": 1}]}', "r.jsonl", call=options(metric="vqa_score"))  # fmt: skip
score("an answer index beyond the choices", GOOD, '{"id": 1, "choices": ["a"], "answer_index": 5}\n{"id": 2, "choices": ["a"], "answer_index": 0}\n', "1", call=options(metric="scienceqa"))  # fmt: skip
score("captions that are none", GOOD, '{"id": 1, "captions": []}\n{"id": 2, "captions": ["a"]}\n', "captions", call=options(metric="cider"))  # fmt: skip
score("an output that is a folder", GOOD, TRUTH, "config", call=options("--per-example", "config"))
score(
    "an output in a folder that is a file",
    GOOD,
    TRUTH,
    "p.jsonl",
    "a file stands where there should be a folder",
    call=options("--per-example", "p.jsonl/out"),
)
score("references not there", GOOD, TRUTH, "none.jsonl", "check the path", call=cli("score", "--metric", "exact_match", "--predictions", "p.jsonl", "--references", "none.jsonl"))  # fmt: skip
score("predictions that are a folder", GOOD, TRUTH, "config", call=cli("score", "--metric", "exact_match", "--predictions", "config", "--references", "r.jsonl"))  # fmt: skip
score("nothing to do", GOOD, TRUTH, "--metric", call=cli("score", "--predictions", "p.jsonl"))
case("score", "a spreadsheet that is none", written("p.xlsx", "no"), cli("score", "--metric", "exact_match", "--predictions", "p.xlsx", "--references", "r.jsonl"), "p.xlsx", "spreadsheet")  # fmt: skip
case("score", "a spreadsheet without its columns", written("p.tsv", "a\tb\n1\t2\n"), cli("score", "--metric", "exact_match", "--predictions", "p.tsv", "--references", "r.jsonl"), "p.tsv", "index")  # fmt: skip


def bomb(w: World) -> None:
    """A spreadsheet whose text calls itself again and again."""
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    with zipfile.ZipFile(w.path("p.xlsx"), "w") as book:
        book.writestr("xl/worksheets/sheet1.xml", f'<!DOCTYPE x [<!ENTITY e0 "ha">{entities}]><x>&e11;</x>')


case("score", "a spreadsheet that explodes", bomb, cli("score", "--metric", "exact_match", "--predictions", "p.xlsx", "--references", "r.jsonl"), "p.xlsx", "spreadsheet")  # fmt: skip

# ---- sub-commands --------------------------------------------------------------------------------


def command(name: str, arguments: tuple[str, ...], *says: str, damage: Damage = nothing, **more: Any) -> None:
    case("command", name, damage, cli(*arguments), *says, **more)


command("runs of an unknown study", ("runs", "smal"), "did you mean 'small'")
command("runs of a study outside", ("runs", "../studies/small"), "small")
command("studies of an unknown group", ("studies", "papr"), "papr")
command("a ticket of nothing", ("ticket", "0123456789abcdef"), "0123456789abcdef", "peftbench runs")
command("a ticket of no digest", ("ticket", "../../etc"), "digest")
command("pin of an unknown file", ("pin", "tinny"), "did you mean 'tiny'")
command("pin of a file that is no YAML", ("pin", "tiny"), "config/models/tiny.yaml", damage=written("config/models/tiny.yaml", "a: [\n"))  # fmt: skip
command(
    "claims without a file",
    ("claims",),
    "config/claims.yaml",
    damage=lambda w: w.path("config/claims.yaml").unlink(),
)
command("explain nothing", ("explain", "no-such-thing"), "no-such-thing")
command("explain a digest that there is not", ("explain", "0123456789abcdef"), "0123456789abcdef")
command("explain by an unknown axis", ("explain", "small", "methd=lora"), "methd", "did you mean 'method'")
command("explain by what is no filter", ("explain", "small", "lora"), "lora", "axis=value")
command("bless an unknown stage", ("bless", "trian:training.loop"), "trian")
command("bless an unknown module", ("bless", "train:training.lop"), "nothing to bless")
command("bless what is no module", ("bless", "train"), "train")
command("gc beside another checkout that is none", ("gc", "--also", "my_data"), "--also", "my_data")
command("plan of an unknown study", ("plan", "smal"), "did you mean 'small'")
command("plan with records from nowhere", ("plan", "--records", "none"), "--records", "none")
command("plan for no price", ("plan", "small", "--hardware", "cpu-2-cores", "--price", "nan"), "--price")
command("plan into a folder that is a file", ("plan", "small", "--hardware", "cpu-2-cores", "--html", "Snakefile/plan.html"), "Snakefile")  # fmt: skip
command("annotate an unknown study", ("annotate", "make", "smal", "--out", "sheet"), "did you mean 'small'")
command(
    "annotate before there are answers",
    ("annotate", "make", "small", "--out", "sheet"),
    "no answers to own yet",
)
command("annotate ids from nowhere", ("annotate", "make", "small", "--out", "sheet", "--ids", "none.txt"), "none.txt", results=True)  # fmt: skip
command("annotate ids that there are not", ("annotate", "make", "small", "--out", "sheet", "--ids", "ids.txt"), "nobody", damage=written("ids.txt", "nobody\n"), results=True)  # fmt: skip
command(
    "annotate more than there is",
    ("annotate", "make", "small", "--out", "sheet", "--draw", "100"),
    "100",
    results=True,
)
command(
    "annotate -1 pictures",
    ("annotate", "make", "small", "--out", "sheet", "--draw", "-1"),
    "cannot draw -1 of 4",
    results=True,
)
command("count without a sheet", ("annotate", "count", "a.json", "--sheet", "sheet", "--out", "out"), "sheet")
command("schema of no project", ("schema", "--root", "my_data"), "config/README.md")
command(
    "a blessing that is no YAML", ("runs",), "blessed.yaml", "line 2", damage=written("blessed.yaml", "- [\n")
)
command("a blessing that lacks its proofs", ("runs",), "blessed.yaml", "proofs", damage=written("blessed.yaml", "- {stage: train, date: '2024', changes: []}\n"))  # fmt: skip
command("a blessing that is a text", ("runs",), "blessed.yaml", damage=written("blessed.yaml", "hello\n"))
command("a judge without a model", ("runs", "judged"), CONFIG, "judge", "model", damage=changed(CONFIG, "judge", {"model": ""}))  # fmt: skip
command("a judge with a password in its address", ("runs", "judged"), CONFIG, "base_url", damage=changed(CONFIG, "judge", {"base_url": "https://me:secret@host/v1"}))  # fmt: skip
command("a judge with its key in the request", ("runs", "judged"), CONFIG, "parameters.api_key", "judge_key_variable", damage=changed(CONFIG, "judge", {"parameters": {"api_key": "sk-1"}}))  # fmt: skip
command("an unknown judge", ("runs", "judged"), CONFIG, "judge", "did you mean 'endpoint'", damage=changed(CONFIG, "judge", {"kind": "endpiont"}))  # fmt: skip
command("a judge's prompt from nowhere", ("runs", "judged"), CONFIG, "prompt_file", "none.txt", damage=changed(CONFIG, "judge", {"prompt_file": "none.txt"}))  # fmt: skip
command("a judge's prompt with an unknown place", ("runs", "judged"), CONFIG, "prompt_file", "did you mean 'question'", damage=each(written("p.txt", "{qestion} {model_answer}"), changed(CONFIG, "judge", {"prompt_file": "p.txt"})))  # fmt: skip
command("a mirror with a password", ("runs",), CONFIG, "execution.mirrors", "~/.netrc", damage=changed(CONFIG, "execution.mirrors", {"https://a/": "https://me:secret@b/"}))  # fmt: skip

# ---- by the real command line ------------------------------------------------------------------------


def real(name: str, damage: Damage, call: Call, *says: str, **more: Any) -> None:
    case("command line", name, damage, call, *says, process=True, **more)


def script(stage: str, label: str = "", **options: Any) -> Call:
    """A job of the small study by its script."""

    def call(w: World) -> Outcome:
        plan, planned = w.job_of(stage, label=label)
        return w.process(RULES[stage], *w.words(plan, planned, **options))

    return call


def bad_row(w: World) -> None:
    w.edit("my_data/train.csv", lambda data: data.replace(b"train_1.png", b"gone.png"))
    w.job("retrieve", label="my_data")


MIRRORED = {"own": {"hub": "me/own", "revision": "main"}}
real(
    "peftbench without a command",
    nothing,
    process("peftbench"),
    "arguments are required",
    "COMMAND",
    status=2,
)
real("a command that there is not", nothing, process("peftbench", "runz"), "invalid choice: 'runz'", status=2)
real("no GPUs", nothing, process("peftbench", "plan", "small", "--gpus", "0"), "--gpus", "'0'", status=2)
real("an unknown study", nothing, process("peftbench", "runs", "smal"), "did you mean 'small'")
real(
    "an overlay in Latin-1",
    written("my.yaml", "a: \xe9\n".encode("latin-1")),
    process("peftbench", "runs", "--configfile", "my.yaml"),
    "my.yaml",
    "not UTF-8",
)
real("a digest of nothing", nothing, process("peftbench", "ticket", "0123456789abcdef"), "0123456789abcdef")
real("an explanation of nothing", nothing, process("peftbench", "explain", "nothing"), "nothing")
real(
    "half a line of predictions",
    each(written("p.jsonl", GOOD[:-10]), written("r.jsonl", TRUTH)),
    process("peftbench", *SCORE),
    "p.jsonl",
    "line 2",
)
real(
    "an unknown metric",
    each(written("p.jsonl", GOOD), written("r.jsonl", TRUTH)),
    process("peftbench", "score", "--metric", "bleu9", "--predictions", "p.jsonl", "--references", "r.jsonl"),
    "unknown metric 'bleu9'",
)
real("a script without arguments", nothing, process("train_adapter"), "--ticket, --output", status=2)
real(
    "half a ticket",
    nothing,
    process("train_adapter", "--ticket", '{"stage": "tr', "--output", "results/x"),
    "--ticket",
    "not a ticket",
)
real(
    "a ticket from nowhere",
    nothing,
    process("score_predictions", "--ticket", "none.json", "--output", "results/x"),
    "--ticket",
    "none.json",
)
real("a row without its picture", bad_row, script("prepare", "own"), "own", "gone.png", "is not there")
real(
    "a base model cut off",
    lambda w: w.edit(f"{BUILT}/model.safetensors", lambda data: data[:-999]),
    script("train"),
    "cannot load results/models/tiny-",
    results=True,
)
real(
    "a hub without a network",
    changed(OWN_FILE, "source.from", MIRRORED),
    lambda w: w.process(
        "retrieve_source", *w.words(*w.job_of("retrieve")), HF_HUB_OFFLINE="1", HF_HOME="home"
    ),
    "me/own",
    "HF_HUB_OFFLINE is set",
    "prefetch",
)
real(
    "a hub's cache that cannot be",
    changed(OWN_FILE, "source.from", MIRRORED),
    lambda w: w.process(
        "retrieve_source", *w.words(*w.job_of("retrieve")), HF_HUB_OFFLINE="1", HF_HOME="/dev/null/home"
    ),
    "/dev/null/home",
)
real("Snakemake: a misspelt study", nothing, process("snakemake", "-n", "smal"), "did you mean 'small'")
real(
    "Snakemake: a misspelt key",
    changed(CONFIG, "traning", {}),
    process("snakemake", "-n"),
    CONFIG,
    "did you mean 'training'",
)
real(
    "Snakemake: a misspelt axis",
    changed(SMALL, "axes.epohcs", 3),
    process("snakemake", "-n", "small"),
    SMALL,
    "did you mean 'epochs'",
)
real("Snakemake: broken YAML", written(CONFIG, "lineup: [\n"), process("snakemake", "-n"), CONFIG, "line 2")
real(
    "Snakemake: a number where keys belong",
    nothing,
    process("snakemake", "-n", "--config", "training=3"),
    "training",
    "expected keys",
)
real(
    "Snakemake: an overlay that is a list",
    written("my.yaml", "- a\n"),
    process("snakemake", "-n", "--configfile", "my.yaml"),
    "keys at top level",
    foreign=True,
)
real(
    "Snakemake: a file that nothing makes",
    nothing,
    process("snakemake", "-n", "results/none.csv"),
    "No rule to produce results/none.csv",
    foreign=True,
)
real(
    "Snakemake: a result of another configuration",
    nothing,
    process("snakemake", "-n", "results/data/own-0123456789abcdef/record.json"),
    "0123456789abcdef",
)
real(
    "Snakemake: a row without its picture",
    bad_row,
    lambda w: w.process("snakemake", "--cores", "1", f"results/{w.job_of('prepare', label='own')[1].record}"),
    "own",
    "gone.png",
    "is not there",
)
case(
    "command",
    "a judge's key that is not set",
    each(
        changed(CONFIG, "judge", {"prompt_file": "p.txt"}),
        changed(CONFIG, "execution.judge_key_variable", "NO_SUCH_VARIABLE"),
        written("p.txt", "{question} {model_answer}"),
    ),
    lambda w: w.job("judge", "judged"),
    "judge_key_variable",
    "not set",
    results=True,
)
