"""The edit matrix: edits of a finished study, and exactly what each makes Snakemake run again."""

import ast

import yaml

from edit_words import (
    ADAPTER,
    ANSWERED,
    BUILT,
    DESCRIBED,
    EXPOSED,
    LARGE_RUNS,
    LORA,
    TUNED,
    Edit,
    answers,
    append,
    backwards,
    both,
    branch,
    code,
    config,
    data,
    dataset,
    delete,
    each_module,
    each_yaml,
    file,
    fresh_clone,
    model,
    move_results,
    new_study,
    nothing,
    of,
    other_docstrings,
    package,
    remove_study,
    rename_study,
    study,
    text,
    touch,
    views,
    write,
)
from matrix_project import LARGE, ONE_RUN, OWN, ROWS, STUDIES


def trial(factor: float) -> str:
    """Name of a trial's run."""
    return f"lora/tiny/first/tuned+rate={2e-4 * factor:g}"


SMALL = STUDIES["small"]
EXECUTION = {
    "device": "auto",
    "micro_batch": 2,
    "gradient_checkpointing": True,
    "workers": 3,
    "threads": 2,
    "worker": "shared",
    "mirrors": {"http://images.cocodataset.org": "http://mirror"},
    "judge_concurrency": 9,
    "cache_dir": "/tmp/somewhere",
}

EDITS = [
    Edit("nothing at all", nothing),
    # --- Settings of methods and of training ---
    Edit("LoRA's rank", config(methods__lora__rank=8), LORA),
    Edit(
        "LoRA's rank and alpha swapped",
        config(methods__lora__rank=32, methods__lora__alpha=16),
        LORA,
    ),
    Edit("beta1 and beta2 swapped", config(training__beta1=0.95, training__beta2=0.9), TUNED),
    Edit(
        "LoRA's rank in an overlay",
        write("o.yaml", "methods: {lora: {rank: 8}}"),
        LORA,
        ("--configfile", "o.yaml"),
    ),
    Edit("epochs by --config", nothing, TUNED, ("--config", "training={epochs: 3}")),
    Edit("a setting of a method that no study uses", config(methods__ia3={"learning_rate": 0.5})),
    Edit(
        "the adapter's width on one model",
        model("tiny", methods={"adapter": {"bottleneck": 4}}),
        ADAPTER,
        really=True,
    ),
    Edit(
        "the connector's learning rate",
        config(training__connector_learning_rate=1e-3),
        (of("*/tuned*"), views("*")),
    ),
    Edit(
        "epochs of one study",
        study("exposed", training={"epochs": 3}),
        (of("*+exposed"), views("exposed")),
        really=True,
    ),
    Edit("a second seed", config(seeds=[42, 7]), (of("*+seed=7*"), views("*"))),
    Edit("another seed", config(seeds=[7]), TUNED),
    Edit(
        "a smaller training set in one study",
        study("judged", axes__train_size=5),
        ("subset first/5", of("*+size=5*"), views("judged")),
        really=True,
    ),
    Edit(
        "a third trial of the learning rate",
        study("trials", tuning={"factors": [0.5, 1, 2]}),
        (f"train {trial(2)}", of("*+chosen"), views("trials")),
        really=True,
    ),
    Edit("epochs of the exposure", config(exposure={"epochs": 2}), EXPOSED, really=True),
    Edit(
        "int to float of equal value",
        config(training__weight_decay=0.0, methods__lora__alpha=32.0),
        really=True,
    ),
    Edit(
        "a float written otherwise",
        text("config/config.yaml", "learning_rate: 0.0002", "learning_rate: 2.0E-4"),
    ),
    Edit("keys of all YAML files the other way round", each_yaml(backwards), really=True),
    Edit(
        "comments in all YAML files, other style",
        both(each_yaml(lambda c: c), append("config/config.yaml", "# why\n")),
    ),
    Edit(
        "defaults written out",
        both(
            config(training__schedule="cosine", methods__lora__dropout=0.05, evaluation={"batch_size": 16}),
            config(methods__adapter={}, identity={"granularity": "minor"}),
            model("tiny", precision="bf16", training={"global_batch": 128}),
            model("large", source=LARGE["source"] | {"image_processor": {}}),
            dataset("own", source=OWN | {"tolerate": 0}, evaluation_only=False),
            study("small", averages=[], columns="dataset"),
            study("judged", axes__connector="tuned", axes__train_size="full"),
        ),
        really=True,
    ),
    Edit(
        "a default that another value hides",
        both(
            config(training__precision="bf16"),
            study("trials", tuning={"factors": [0.5, 1.0], "validation": 0.1}),
        ),
    ),
    # --- Models ---
    Edit("a model's title", model("large", title="Larger"), (views("small"),), really=True),
    Edit(
        "a model's revision",
        model("large", source__from__model__revision="2" * 40),
        ("retrieve owner/large", "build large", *LARGE_RUNS),
        really=True,
    ),
    Edit("a model's precision", model("large", precision="fp32"), LARGE_RUNS),
    Edit(
        "a model's layers",
        model("tiny", names__attention=["self_attn.k_proj"]),
        ("build tiny", "expose tiny", of("*/tiny/*"), views("*")),
    ),
    Edit("features of the vision tower kept", model("tiny", cache_vision=True)),
    Edit(
        "a model that no study names",
        write("config/models/third.yaml", yaml.safe_dump(LARGE | {"title": "Third"})),
    ),
    # --- Data sets and prompts ---
    Edit(
        "a data set's prompt",
        dataset("own", prompt={"templates": ["{question}?"]}),
        (of("*/own/*"), views("small")),
        really=True,
    ),
    Edit(
        "the prompt of a seen data set",
        dataset("second", prompt={"templates": ["{question}?"]}),
        (of("*/second/*"), *EXPOSED, views("small"), DESCRIBED),
    ),
    Edit(
        "length of its answers",
        dataset("own", decoding={"max_new_tokens": 9}),
        (answers("*/own/*"), views("small")),
        really=True,
    ),
    Edit(
        "a metric's setting",
        dataset("own", metric__settings={"variant": "official"}),
        ("score */own/*", views("small")),
        really=True,
    ),
    Edit(
        "its metric",
        dataset("own", metric={"name": "exact_match"}),
        ("score */own/*", views("small")),
    ),
    Edit("its label in tables", dataset("first", table_label="1st"), (views("*"), DESCRIBED)),
    Edit(
        "its number of examples", dataset("first", splits__train=21), (*data("first"), views("*"), DESCRIBED)
    ),
    Edit(
        "its generator",
        dataset("second", source__generator="vizwiz"),
        (*data("second"), *EXPOSED, views("small"), DESCRIBED),
    ),
    Edit("a data file with the same bytes", write("my_data/rows.csv", ROWS), really=True),
    Edit(
        "one row of a data file",
        write("my_data/rows.csv", ROWS.replace("tulip", "daisy")),
        ("retrieve my_data", *data("own"), views("small")),
        really=True,
    ),
    Edit(
        "a file more beside it",
        write("my_data/more.csv", ROWS),
        ("retrieve my_data", *data("own"), views("small")),
    ),
    Edit("a hidden file beside it", write("my_data/.notes", "x")),
    Edit(
        "the data moved to another folder",
        both(
            lambda project: (project.root / "my_data").rename(project.root / "their_data"),
            dataset("own", source__from__own__path="their_data"),
        ),
    ),
    Edit(
        "a file of the embedded data",
        file("data/embedded/pack/concepts.jsonl"),
        (*data("first"), *data("second"), *EXPOSED, views("*"), DESCRIBED),
    ),
    Edit(
        "a published value",
        text("paper/tables/paper.csv", "50.0", "51.0"),
        (views("small"),),
        really=True,
    ),
    # --- Templates ---
    Edit("a chat template", file("models/templates/vicuna_v1.jinja"), LARGE_RUNS, really=True),
    Edit(
        "the other chat template",
        file("models/templates/plain.jinja"),
        ("expose tiny", of("*/tiny/*"), views("*")),
    ),
    Edit("a chat template that nobody uses", file("models/templates/gemma3.jinja")),
    Edit("answers generated in other batches", config(evaluation={"batch_size": 8}), ANSWERED),
    Edit("adapters never merged", config(evaluation={"merge": "never"}), ANSWERED),
    # --- Judge ---
    Edit(
        "failures tolerated of the judge",
        config(judge__tolerated=0.5),
        ("judge|score *+judged", views("judged")),
        really=True,
    ),
    Edit(
        "the judge's prompt",
        file("metrics/scales/mmhal.txt"),
        ("judge|score *+judged", views("judged")),
        really=True,
    ),
    Edit("the judge's module", code("judging/facts"), ("judge|score *+judged", views("judged")), really=True),
    Edit("a judge that nobody asks", code("judging/endpoint")),
    # --- Tables, figures, pages, studies ---
    Edit("the aggregation only", code("analysis/table"), (views("*"),)),
    Edit("the plots only", code("analysis/plot"), ("plot|report *",)),
    Edit("the kind of figure that is used", code("analysis/figures/dots"), ("plot|report *",)),
    Edit("a kind of figure that is not", code("analysis/figures/losses")),
    Edit("the page only", code("report/build"), ("report *",), really=True),
    Edit("the page's style sheet", file("report/page.css"), ("report *",)),
    Edit("pictures on the page", config(report={"gallery": 1}), ("report *",)),
    Edit("a study's title", study("small", title="Smaller"), (views("small"),), really=True),
    Edit("a study's note", study("small", note="Mind."), ("report small",)),
    Edit(
        "a table's rows reordered",
        study("small", rows=["connector", "method", "model"]),
        (views("small"),),
        really=True,
    ),
    Edit(
        "data sets in another order",
        config(lineup__datasets=["second", "first"]),
        (views("small"),),
    ),
    Edit(
        "a row left out",
        study("small", exclude=[{"method": "adapter", "dataset": "first"}]),
        (views("small"),),
    ),
    Edit(
        "a method more",
        study("trials", axes__method=["lora", "ia3"], tuning={"factors": [1]}),
        (of("ia3/*"), of("lora/*+chosen"), views("trials")),
    ),
    Edit(
        "a study of the same runs",
        new_study("more", {"title": "More", "axes": ONE_RUN}),
        (views("more"),),
        really=True,
    ),
    Edit(
        "a study of other runs",
        new_study("more", {"title": "More", "axes": ONE_RUN | {"method": ["lora", "prefix"]}}),
        (of("prefix/*"), views("more")),
        really=True,
    ),
    Edit(
        "a study that nobody asks for",
        new_study("more", {"title": "More", "axes": ONE_RUN | {"method": "ia3"}}, False),
    ),
    Edit("a study removed", remove_study("judged")),
    Edit("a study renamed", rename_study("judged", "rated"), (views("rated"),), really=True),
    Edit("what describes: its module", code("analysis/descriptions/data_sets"), (DESCRIBED,), really=True),
    # --- Code: what cannot change a result ---
    Edit(
        "comments in every module", each_module(lambda source: f"# why\n{source}\n# why not\n"), really=True
    ),
    Edit("docstrings of every module", each_module(other_docstrings)),
    Edit("every module reformatted", each_module(lambda source: ast.unparse(ast.parse(source))), really=True),
    Edit("every module with other line ends", each_module(lambda source: source.replace("\n", "\r\n"))),
    Edit("a module imported under TYPE_CHECKING only", code("training/notes"), really=True),
    Edit(
        "modules that carry, not compute",
        both(code("store"), code("job"), code("fingerprint"), code("retrieve/hub")),
    ),
    Edit(
        "planning and configuration",
        both(code("graph"), code("study"), code("config"), code("config_types"), code("cli")),
    ),
    Edit("a method that no study uses", code("methods/prefix")),
    Edit("a metric that no study uses", code("metrics/cider")),
    Edit(
        "a new method, and an empty package",
        both(write("src/peftbench/methods/new.py", "Config = 1\n"), write("src/peftbench/x/__init__.py", "")),
    ),
    # --- Code: what can ---
    Edit("one method's module", code("methods/adapter"), ADAPTER, really=True),
    Edit("another method's module", code("methods/lora"), LORA),
    Edit("the layers of that method alone", code("tuners/bottleneck"), ADAPTER),
    Edit("the method that does nothing", code("methods/base"), (answers("base/*"), views("small"))),
    Edit(
        "a method imports another module",
        append("src/peftbench/methods/adapter.py", "\nimport peftbench.data.draw\n"),
        ADAPTER,
    ),
    Edit("a metric", code("metrics/mmhal"), ("score *+judged", views("judged")), really=True),
    Edit(
        "a helper of one metric",
        code("metrics/_vqa_text"),
        (
            "score */frozen",
            "score */tuned",
            "score *+chosen",
            "score *+exposed",
            views("small"),
            views("trials"),
            views("exposed"),
        ),
    ),
    Edit(
        "a data set's generator",
        code("data/embedded/okvqa"),
        (*data("second"), *EXPOSED, views("small"), DESCRIBED),
    ),
    Edit("the reader of tables", code("data/tables/split"), (*data("own"), views("small"))),
    Edit("training", code("training/loop"), ("expose tiny", *TUNED)),
    Edit("the optimiser", code("training/optimizer"), ("expose tiny", *TUNED)),
    Edit(
        "the choice among trials",
        code("training/choose"),
        ("choose *", answers("*+chosen"), views("trials")),
        really=True,
    ),
    Edit(
        "batches, for training and answering", code("training/batches"), ("expose tiny", of("*"), views("*"))
    ),
    Edit("loading of models, for all that need one", code("models/load"), BUILT),
    Edit(
        "reading of data, for all but its preparation",
        code("data/load"),
        ("subset *", "expose *", of("*"), views("*")),
    ),
    Edit(
        "where models of the hub come from",
        code("models/sources/hub"),
        ("build large", *LARGE_RUNS),
    ),
    Edit("generation", code("evaluation/generate"), ANSWERED),
    Edit("scoring", code("evaluation/score"), ("score *", views("*"))),
    Edit(
        "a script", append("workflow/scripts/score_predictions.py", "\nEDITED = 1\n"), ("score *", views("*"))
    ),
    Edit("a comment in a script", append("workflow/scripts/train_adapter.py", "\n# why\n")),
    Edit(
        "message, threads and log of a rule",
        both(
            text("workflow/rules/train.smk", '"Tuning ', '"Training '),
            text(
                "workflow/rules/train.smk",
                "    resources:\n",
                "    threads: 3\n    resources:\n        mem_mb=999,\n",
            ),
            text("workflow/rules/score.smk", "<logs>/score_predictions/", "<logs>/scoring/"),
        ),
        really=True,
    ),
    Edit(
        "a rule renamed",
        text("workflow/rules/train.smk", "rule train_adapter:", "rule fine_tune:"),
        really=True,
    ),
    # --- Versions of packages ---
    Edit("peft: patch", package("peft", 2), really=True),
    Edit("peft: minor", package("peft", 1), ("expose *", of("*"), views("*"))),
    Edit("torch: patch", package("torch", 2)),
    Edit("torch: minor", package("torch", 1), BUILT),
    Edit(
        "peft: patch, where patches count",
        both(config(identity={"granularity": "patch"}), package("peft", 2)),
        BUILT,
    ),
    Edit("a package that is not listed", package("polars", 1)),
    # --- Execution ---
    Edit("GPUs, micro-batch, workers, threads, mirrors", config(execution=EXECUTION), really=True),
    Edit(
        "wall time, partition, memory",
        nothing,
        (),
        ("--default-resources", "runtime=600", "mem_mb=9000", "slurm_partition=gpu"),
    ),
    Edit(
        "log level, cores, retries", nothing, (), ("--verbose", "--retries", "2", "--show-failed-logs", "-c7")
    ),
    Edit(
        "environment",
        nothing,
        (),
        (),
        {"CUDA_VISIBLE_DEVICES": "0", "HF_HOME": "/tmp/hf", "OMP_NUM_THREADS": "2"},
    ),
    Edit("the profile", append("profiles/default/profile.yaml", "\nlatency-wait: 60\n")),
    Edit("documents and locks", both(write("README.md", "x"), append("envs/requirements.in", "\n# why\n"))),
    # --- Places and times ---
    Edit("touch of everything", touch, really=True),
    Edit(".snakemake deleted", delete(".snakemake"), really=True),
    Edit(
        "tickets, logs and cached code deleted",
        delete("results/.tickets", "results/logs", "src/**/__pycache__"),
    ),
    Edit("a fresh clone with copied results", fresh_clone, really=True),
    Edit("results in another folder", move_results, (), ("--config", "execution={results: elsewhere/store}")),
    Edit("a branch with an edit", branch(code("methods/adapter"), False), ADAPTER),
    Edit(
        "a branch switched and switched back",
        branch(each_module(lambda s: s + "\nX = 1\n"), True),
        really=True,
    ),
    Edit(
        "a setting changed and changed back",
        both(config(training__epochs=3), config(training__epochs=2)),
        really=True,
    ),
    Edit("a lost table", delete("results/tables/small.md"), ("tabulate small",)),
    Edit("a lost figure of one study", delete("results/figures/judged.png"), ("plot judged",)),
    Edit(
        "lost scores that a lost table needs",
        delete("results/runs/**/scores-*", "results/tables/judged.csv"),
        ("score lora/tiny/first/tuned+judged", "tabulate judged"),
    ),
    Edit(
        "left-overs of a killed job",
        write("results/runs/tiny/first/lora-0123456789abcdef/.partial-x/adapter", "half"),
    ),
]
