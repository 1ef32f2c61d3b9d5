"""Nothing that is fetched, configured or stored is run as code, and nothing leaves its folder."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftbench.data.tables.expressions import BadRow, compiled
from peftbench.data.tables.pictures import Pictures
from peftbench.data.tables.spec import Picture
from peftbench.errors import UserError
from peftbench.models.weights import read_weights, weight_files
from peftbench.retrieve.hub import _select
from peftbench.retrieve.hub_cache import Entry
from peftbench.retrieve.url import base_name

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "src/peftbench/models/shipped/tiny-llava"
NEVER = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "tempfile.mktemp",
    "tarfile.open",
    "shutil.unpack_archive",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
}
"""Calls that have no place here."""
SAFE_YAML = {"_StrictLoader", "yaml.SafeLoader"}


def sources() -> list[Path]:
    return sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "workflow").rglob("*.py")])


def complaints(tree: ast.AST) -> Iterator[str]:
    """What a module does that could run what somebody else wrote, one phrase each."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}

        def is_(key: str, value: Any, given: dict[str | None, ast.expr] = given) -> bool:
            return isinstance(found := given.get(key), ast.Constant) and found.value is value

        if name in NEVER or name.endswith((".extractall", ".extract")):
            yield f"line {node.lineno}: {name}"
        if name == "torch.load" and not is_("weights_only", True):
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if "trust_remote_code" in given and not is_("trust_remote_code", False):
            yield f"line {node.lineno}: trust_remote_code"
        if "shell" in given and not is_("shell", False):
            yield f"line {node.lineno}: a shell"
        if "allow_pickle" in given and not is_("allow_pickle", False):
            yield f"line {node.lineno}: allow_pickle"
        if name in ("yaml.load", "yaml.compose"):
            loader = given.get("Loader")
            if loader is None or ast.unparse(loader) not in SAFE_YAML:
                yield f"line {node.lineno}: {name} with another loader"
        loads = name.endswith(".from_pretrained") and name.startswith("Auto") and None not in given
        if loads and not is_("trust_remote_code", False):
            yield f"line {node.lineno}: {name} without trust_remote_code=False"


def test_no_module_runs_what_others_wrote() -> None:
    found = [
        f"{path.relative_to(ROOT)}, {what}"
        for path in sources()
        for what in complaints(ast.parse(path.read_bytes()))
    ]
    assert not found
    assert len(sources()) > 150


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "exec(x)",
        "os.system(x)",
        "pickle.loads(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "AutoModel.from_pretrained(x)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=y)",
        "subprocess.run(x, shell=True)",
        "yaml.load(x)",
        "yaml.load(x, Loader=yaml.Loader)",
        "tempfile.mktemp()",
        "archive.extractall(x)",
        "numpy.load(x, allow_pickle=True)",
    ],
)
def test_the_search_finds_each(text: str) -> None:
    assert len(list(complaints(ast.parse(text)))) == 1


def test_the_rules_of_the_workflow_quote_what_they_hand_to_the_shell() -> None:
    """Paths and JSON come from the configuration: unquoted, one with a ; would be a command."""
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        commands = [
            node.value
            for node in ast.walk(ast.parse(_shell_parts(path.read_text())))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        fields = [field for text in commands for field in text.split("{")[1:]]
        assert all(field.partition("}")[0].endswith(":q") for field in fields), path


def _shell_parts(text: str) -> str:
    """The strings below each ``shell:`` as Python."""
    lines, found, inside = text.splitlines(), [], False
    for line in lines:
        if line.strip() == "shell:":
            inside = True
        elif inside and line.strip().startswith(('"', 'f"')):
            found.append(line.strip())
        else:
            inside = False
    return "\n".join(found)


# ---- models --------------------------------------------------------------------------------------


class Owned:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    import torch

    mark = tmp_path / "owned"
    torch.save({"weight": torch.zeros(2), "more": Owned(mark)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: cannot be read as weights"):
        list(read_weights(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Owned(mark)))
    with pytest.raises(UserError, match=r"pytorch_model\.bin: cannot be read as weights"):
        list(read_weights(tmp_path))
    assert not mark.exists()


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "model.safetensors", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Owned(tmp_path / "owned")))
    assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]
    assert sum(1 for _ in read_weights(tmp_path)) > 10 and not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, name: Any) -> None:
    index = {"weight_map": {"weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index\.json"):
        weight_files(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": [1]}', "[" * 100_000])
def test_a_broken_index_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json: not an index of weights"):
        weight_files(tmp_path)


def test_code_in_a_model_folder_is_not_run(tmp_path: Path) -> None:
    """A repository that brings its own classes: the folder loads by the library's, or not at all."""
    import torch

    from peftbench.models.load import load_base

    folder, mark = tmp_path / "model", tmp_path / "owned"
    shutil.copytree(SHIPPED, folder)
    (folder / "modeling_evil.py").write_text(
        f"import os\nos.mkdir({str(mark)!r})\nEvil = EvilConfig = None\n"
    )
    for file, auto_map in (
        (
            "config.json",
            {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForImageTextToText": "modeling_evil.Evil"},
        ),
        ("tokenizer_config.json", {"AutoTokenizer": ["modeling_evil.Evil", None]}),
        ("processor_config.json", {"AutoProcessor": "modeling_evil.Evil"}),
    ):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | {"auto_map": auto_map}))
    load_base(folder, "fp32", torch.device("cpu"))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "evil"}))
    with pytest.raises(UserError, match="cannot load"):
        load_base(folder, "fp32", torch.device("cpu"))
    assert not mark.exists()


# ---- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "__import__('os').mkdir('owned')",
        "(lambda: 1)()",
        "[x for x in range(3)]",
        "9**9**9",
        "open('x')",
        "a.b",
    ],
)
def test_values_of_data_are_literals_not_code(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRow):
        compiled("x | python")({"x": value, "_row": 0})
    assert not list(tmp_path.iterdir())


def test_templates_reach_no_attributes() -> None:
    with pytest.raises(BadRow):
        compiled("{x.__class__}")({"x": "a", "_row": 0})


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "pictures/../../secret.png", "..\\secret.png"]
)
def test_pictures_cannot_lie_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "data/pictures").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    shelf = Pictures(Picture(in_="own", name="{file}"), {"own": tmp_path / "data"}, tmp_path / "images")
    with pytest.raises(BadRow, match="is not there"):
        shelf.store({"file": name, "_row": 0})
    assert not (tmp_path / "images").exists()


def test_members_of_archives_are_read_by_name_and_never_extracted(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "data/all.zip", "w") as archive:
        archive.writestr("../../outside.png", b"no picture")
        archive.writestr("/etc/outside.png", b"no picture")
    shelf = Pictures(Picture(in_="own", name="{file}"), {"own": tmp_path / "data"}, tmp_path / "images")
    for name in ("../../outside.png", "/etc/outside.png"):
        with pytest.raises(BadRow, match="not a readable image"):
            shelf.store({"file": name, "_row": 0})
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
    assert not Path("/etc/outside.png").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "a\\..\\outside"])
def test_a_repository_cannot_write_outside(name: str) -> None:
    with pytest.raises(UserError, match="would lie outside"):
        _select([Entry(name, 1, "0" * 40)], [], "model a/b")


@pytest.mark.parametrize("url", ["https://h/..", "https://h/a%2F..%2Fb", "https://h/", "https://h/%2e%2e"])
def test_an_address_cannot_name_a_file_elsewhere(url: str) -> None:
    with pytest.raises(UserError, match="ends in no file name"):
        base_name(url)
