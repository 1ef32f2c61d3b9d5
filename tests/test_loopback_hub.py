import json
import os
import shutil
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pytest

import peftbench
from loopback_hub import LoopbackHub, git_blob, lfs_pointer

SHIPPED = Path(peftbench.__file__).parent / "models" / "shipped" / "tiny-llava"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model, and a data set of two parquet splits."""
    import polars

    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(SHIPPED, root / "models/peft/tiny", ignore=shutil.ignore_patterns("recipe.json"))
    data = root / "datasets/peft/questions"
    (data / "data").mkdir(parents=True)
    for split, rows in (("train", 6), ("test", 3)):
        frame = polars.DataFrame(
            {"id": list(range(rows)), "question": [f"{split} {n}?" for n in range(rows)]}
        )
        frame.write_parquet(data / f"data/{split}-00000-of-00001.parquet")
    (data / "README.md").write_text("---\nlicense: cc-by-4.0\n---\nQuestions.\n")
    (root / "files/images.example.org/zips").mkdir(parents=True)
    (root / "files/images.example.org/zips/a b.bin").write_bytes(bytes(range(256)) * 40)
    return root


@pytest.fixture
def hub(root):
    with LoopbackHub(root) as hub:
        yield hub


def run(hub, home, code):
    """What a fresh process with the real clients prints as JSON."""
    environment = {**os.environ, **hub.environment(home)}
    program = textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_hub_client_lists_and_downloads(hub, tmp_path):
    found = run(
        hub,
        tmp_path,
        """
        import hashlib, json, pathlib
        from huggingface_hub import HfApi, snapshot_download, hf_hub_download, get_cached_repo_tree
        api = HfApi()
        info = api.model_info("peft/tiny", files_metadata=True)
        tree = {f.path: f for f in api.list_repo_tree("peft/tiny", recursive=True)}
        folder = pathlib.Path(snapshot_download("peft/tiny"))
        weights = tree["model.safetensors"]
        [one] = api.get_paths_info("peft/tiny", ["config.json", "none.json"])
        print(json.dumps({
            "sha": info.sha, "folder": folder.name,
            "siblings": {s.rfilename: [s.size, s.blob_id] for s in info.siblings},
            "sha256": [weights.lfs.sha256, hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()],
            "target": (folder / "model.safetensors").readlink().name,
            "config": [one.blob_id, (folder / "config.json").readlink().name],
            "main": api.list_repo_refs("peft/tiny").branches[0].target_commit,
            "exists": [api.repo_exists("peft/tiny"), api.repo_exists("peft/none"),
                       api.revision_exists("peft/tiny", "v9"), api.file_exists("peft/tiny", "x.json")],
            "cached": len(get_cached_repo_tree("peft/tiny")),
        }))
        """,
    )
    folder = hub.root / "models/peft/tiny"
    assert found["sha"] == found["folder"] == found["main"] == hub.commit("model", "peft/tiny")
    assert len(found["siblings"]) == found["cached"] == len(list(folder.iterdir()))
    config = (folder / "config.json").read_bytes()
    assert found["config"] == [git_blob(config)] * 2
    assert found["siblings"]["config.json"] == [len(config), git_blob(config)]
    assert found["sha256"][0] == found["sha256"][1] == found["target"]
    size = (folder / "model.safetensors").stat().st_size
    pointer = git_blob(lfs_pointer(found["target"], size))
    assert found["siblings"]["model.safetensors"] == [size, pointer]
    assert found["exists"] == [True, False, False, False]


def test_git_agrees_on_the_ids(tmp_path):
    data = b"some text\n" * 3
    done = subprocess.run(["git", "hash-object", "--stdin"], input=data, capture_output=True, check=True)
    assert git_blob(data) == done.stdout.decode().strip()


def test_large_files_come_from_another_origin_without_the_token(hub, tmp_path):
    code = """
        import json
        from huggingface_hub import hf_hub_download
        print(json.dumps(hf_hub_download("peft/tiny", "model.safetensors", token="hf_secret")))
        """
    run(hub, tmp_path, code)
    asked = [r for r in hub.requests if "/resolve/" in r.path]
    assert asked and all(r.token == "Bearer hf_secret" for r in asked)
    [sent] = [r for r in hub.requests if r.path.startswith("/cdn/")]
    assert sent.token == "" and sent.sent == (hub.root / "models/peft/tiny/model.safetensors").stat().st_size


def test_transformers_loads_by_name_and_datasets_too(hub, tmp_path):
    found = run(
        hub,
        tmp_path,
        """
        import json
        from datasets import load_dataset
        from transformers import AutoModelForImageTextToText, AutoProcessor
        model = AutoModelForImageTextToText.from_pretrained("peft/tiny")
        processor = AutoProcessor.from_pretrained("peft/tiny")
        data = load_dataset("peft/questions")
        print(json.dumps({
            "parameters": model.num_parameters(), "class": type(model).__name__,
            "tokens": len(processor.tokenizer), "rows": {name: len(split) for name, split in data.items()},
            "first": data["test"][0],
        }))
        """,
    )
    assert found["class"] == "LlavaForConditionalGeneration" and found["parameters"] > 2_000_000
    assert found["tokens"] > 100
    assert found["rows"] == {"train": 6, "test": 3}
    assert found["first"] == {"id": 0, "question": "test 0?"}


def test_the_commit_is_that_of_the_content(root, tmp_path):
    first = LoopbackHub(root).commit("model", "peft/tiny")
    copy = tmp_path / "copy"
    shutil.copytree(root / "models/peft/tiny", copy / "models/peft/tiny")
    assert LoopbackHub(copy).commit("model", "peft/tiny") == first
    (copy / "models/peft/tiny/config.json").write_text("{}")
    assert LoopbackHub(copy).commit("model", "peft/tiny") != first


def fetch(hub, path, **headers):
    return urllib.request.urlopen(urllib.request.Request(hub.endpoint + path, headers=headers), timeout=10)


def test_the_tree_comes_in_pages(root, tmp_path):
    with LoopbackHub(root, page_size=2) as hub:
        paths = run(
            hub,
            tmp_path,
            """
            import json
            from huggingface_hub import HfApi
            print(json.dumps([file.path for file in HfApi().list_repo_tree("peft/tiny", recursive=True)]))
            """,
        )
    assert sorted(paths) == sorted(p.name for p in (root / "models/peft/tiny").iterdir())
    assert len([r for r in hub.requests if "/tree/" in r.path]) == -(-len(paths) // 2)


def test_plain_files_and_their_ranges(hub):
    whole = (hub.root / "files/images.example.org/zips/a b.bin").read_bytes()
    place = "/files/images.example.org/zips/a%20b.bin"
    with fetch(hub, place) as answer:
        assert answer.read() == whole and answer.headers["Accept-Ranges"] == "bytes"
        etag = answer.headers["ETag"]
    with fetch(hub, place, Range="bytes=10000-") as answer:
        assert (answer.status, answer.read()) == (206, whole[10000:])
        assert answer.headers["Content-Range"] == f"bytes 10000-{len(whole) - 1}/{len(whole)}"
    with fetch(hub, place, **{"Range": "bytes=5-9", "If-Range": etag}) as answer:
        assert answer.read() == whole[5:10]
    with fetch(hub, place, **{"Range": "bytes=5-9", "If-Range": '"another"'}) as answer:
        assert (answer.status, answer.read()) == (200, whole)
    assert hub.mirrors()["http://images.example.org/"] == f"{hub.endpoint}/files/images.example.org/"


@pytest.mark.parametrize(
    "kind, options, status, headers",
    [
        ("gated", {}, 401, {"X-Error-Code": "GatedRepo"}),
        ("403", {}, 403, {}),
        ("404", {}, 404, {"X-Error-Code": "EntryNotFound"}),
        ("429", {"retry_after": 7}, 429, {"Retry-After": "7"}),
        ("500", {}, 500, {}),
    ],
)
def test_refusals_on_request(hub, kind, options, status, headers):
    place = "/peft/tiny/resolve/main/config.json"
    hub.fail("*/config.json", kind, **options)
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(hub, place)
    with caught.value as answer:
        assert answer.code == status
        assert {name: answer.headers[name] for name in headers} == headers
    with fetch(hub, place) as answer:  # once only
        assert answer.status == 200


def test_content_that_is_cut_slow_or_wrong(hub):
    place = "/files/images.example.org/zips/a%20b.bin"
    whole = (hub.root / "files/images.example.org/zips/a b.bin").read_bytes()
    hub.fail("*.bin", "cut", after=100)
    import http.client

    with pytest.raises(http.client.IncompleteRead) as caught, fetch(hub, place) as answer:
        answer.read()
    assert caught.value.partial == whole[:100]
    hub.fail("*.bin", "wrong")
    with fetch(hub, place) as answer:
        wrong = answer.read()
    assert len(wrong) == len(whole) and wrong != whole
    hub.fail("*.bin", "length", by=-10)
    with fetch(hub, place) as answer:
        assert answer.read() == whole[:-10]
    hub.fail("*.bin", "slow", block=4096, pause=0.01)
    with fetch(hub, place) as answer:
        assert answer.read() == whole
    with pytest.raises(ValueError, match="'slwo' is none of"):
        hub.fail("*", "slwo")
