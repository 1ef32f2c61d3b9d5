"""Every public model and data set through the whole workflow: from the hub's protocol to a score.

The hub is a server on loopback with miniatures in the exact layouts of the real repositories; the code is what users
run. Counts and commits of the configuration files are set to those of the miniatures, and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import hub_datasets
import model_zoo
import qwen_vl_folder
from loopback_hub import LoopbackHub
from peftbench.config import Settings, read_yaml
from test_datasets_real import MINIATURE

ROOT = Path(__file__).parent.parent
DATASETS = (
    "scienceqa_img",
    "vizwiz",
    "iconqa_txt",
    "iconqa_blank",
    "flickr30k",
    "okvqa",
    "ocrvqa",
    "vqav2",
)
ROWS = 12
EMBEDDED = "tiny-llava"


def models() -> list[str]:
    """All model files but the embedded one; variants share its base model with the one they extend."""
    settings = Settings.from_files(ROOT)
    return [name for name in settings.names("model") if name != EMBEDDED]


def bases() -> list[str]:
    settings = Settings.from_files(ROOT)
    return [name for name in models() if settings.base_of(name) == name]


class World:
    """A project folder whose configuration fits the miniatures, and the hub that serves them."""

    def __init__(self, folder: Path, hub: LoopbackHub) -> None:
        self.folder, self.hub = folder, hub
        for part in ("Snakefile", "workflow", "profiles", "envs", "config", "paper"):
            source = ROOT / part
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / part)
        for path in (folder / "config/models").glob("*.yaml"):
            self.fit_model(path)
        for path in (folder / "config/datasets").glob("*.yaml"):
            self.fit_dataset(path)
        self.write("config/studies/models.yaml", self.study(models(), ["vizwiz"], "lora"))
        self.write("config/studies/datasets.yaml", self.study(["llava-1.5-7b"], list(DATASETS), "ia3"))
        training = {"epochs": 1, "global_batch": 4, "max_length": 8192, "precision": "fp32"}
        overlay = {"training": training, "methods": {"lora": {"rank": 4}}}
        overlay["execution"] = {"mirrors": hub.mirrors(), "device": "cpu"}
        self.write("overlay.yaml", overlay)

    def study(self, names: list[str], datasets: list[str], method: str) -> dict[str, Any]:
        axes = {"model": names, "dataset": datasets, "method": method, "connector": "tuned"}
        return {"title": "All", "axes": axes, "include_base": False}

    def write(self, name: str, content: Any) -> None:
        (self.folder / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def fit_model(self, path: Path) -> None:
        content = read_yaml(path)
        for origin in content.get("source", {}).get("from", {}).values():
            origin["revision"] = self.hub.commit("model", origin["hub"])
        # sizes of pictures and of models are those of the real checkpoints
        content.get("source", {}).get("image_processor", {}).pop("size", None)
        content["parameters"] = {}
        self.write(f"config/models/{path.name}", content)

    def fit_dataset(self, path: Path) -> None:
        content = read_yaml(path)
        if path.stem not in MINIATURE:
            return
        counts, prepared = MINIATURE[path.stem]
        for origin in content["source"]["from"].values():
            if "hub" in origin:
                origin["revision"] = self.hub.commit("dataset", origin["hub"])
        for split, block in content["source"]["splits"].items():
            block["expected"] = counts[split]
            if "sample" in block:
                block["sample"] |= {"take": prepared[split]}
                if block["sample"].get("skip"):
                    block["sample"]["skip"] = prepared["test"]
        content["splits"] = prepared
        self.write(f"config/datasets/{path.name}", content)

    def snakemake(self, *arguments: str, network: bool, check: bool = True) -> str:
        """Run it; without a network the hub's address is one that nobody listens at."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {"OMP_NUM_THREADS": "1"} | self.hub.environment(self.folder / "home")
        if not network:
            environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
        command = [sys.executable, "-m", "snakemake", *arguments, "--configfile", "overlay.yaml"]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert not check or done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def table(self, study: str) -> pl.DataFrame:
        return pl.read_csv(self.folder / f"results/tables/{study}.csv")

    def records(self, stage: str) -> list[dict[str, Any]]:
        found = [json.loads(p.read_text()) for p in (self.folder / "results").rglob("record.json")]
        return [record for record in found if record.get("stage") == stage and "digest" in record]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything fetched by ``prefetch``, everything made without a network."""
    root = tmp_path_factory.mktemp("hub")
    hub_datasets.write_repos(root, ROWS)
    for name in bases():
        if "Qwen/Qwen-VL-Chat" in str(read_yaml(ROOT / f"config/models/{name}.yaml")["source"]):
            qwen_vl_folder.write_hub_folder(root / "models/Qwen/Qwen-VL-Chat")
        else:
            model_zoo.write_repo(name, root)
    with LoopbackHub(root) as hub:
        world = World(tmp_path_factory.mktemp("project"), hub)
        world.snakemake("prefetch_models", "prefetch_datasets", "--cores", "2", network=True)
        world.snakemake("models", "datasets", "--cores", "2", network=False)
        yield world


def test_every_model_gets_a_score(world: World) -> None:
    table = world.table("models")
    assert sorted(table["model"]) == sorted(models())
    assert set(table["status"]) == {"ok"}, table.select("model", "status", "reason").rows()
    assert table["n"].unique().to_list() == [MINIATURE["vizwiz"][1]["test"]]
    assert len(models()) >= 12, "eleven models of the benchmark and one more"


def test_every_data_set_gets_a_score(world: World) -> None:
    table = world.table("datasets")
    assert sorted(table["dataset"]) == sorted(DATASETS)
    assert set(table["status"]) == {"ok"}, table.select("dataset", "status", "reason").rows()


def test_each_run_trained_its_method_and_its_connector(world: World) -> None:
    runs = world.records("train")
    assert len(runs) == len(models()) + len(DATASETS)
    for run in runs:
        trainable = run["facts"]["trainable"]
        assert (
            trainable["method"] > 0 and trainable["connector"] == run["facts"]["parameters"]["connector"] > 0
        )
        assert trainable["vision"] == trainable["language"] == trainable["embeddings"] == 0
        losses = run["facts"]["losses"]
        assert 0 < losses["last"] < 40


def test_what_was_fetched_is_recorded(world: World) -> None:
    fetched = world.records("retrieve")
    assert len(fetched) >= len(bases()) + 8
    for record in fetched:
        for name, facts in record["facts"]["files"].items():
            assert re.fullmatch(r"[0-9a-f]{64}", facts["sha256"]) and facts["size"] > 0, name


def test_a_second_run_does_nothing(world: World) -> None:
    assert "Nothing to be done" in world.snakemake("-n", "models", "datasets", network=False)


def test_a_missing_file_stops_before_the_hub_is_asked(world: World, tmp_path: Path) -> None:
    """On a compute node without a network, what was not prefetched is one line."""
    retrieved = next((world.folder / "results/retrieved").glob("llava-hf--llava-1.5-7b-hf-*"))
    hidden = tmp_path / "hidden"
    home = world.folder / "home"
    shutil.move(retrieved, hidden)
    shutil.move(home, tmp_path / "home")
    try:
        said = world.snakemake("prefetch_datasets", "--cores", "1", network=False, check=False)
    finally:
        shutil.rmtree(retrieved, ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)
        shutil.move(hidden, retrieved)
        shutil.move(tmp_path / "home", home)
    assert "Traceback" not in said
    assert re.search(r"error: .*llava-hf/llava-1.5-7b-hf.*snakemake prefetch", said), said[-2000:]
