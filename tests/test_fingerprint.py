import ast
import time
from pathlib import Path

import pytest

import peftbench
from peftbench.errors import UserError
from peftbench.fingerprint import Fingerprinter, changes, cut_version, with_versions

PACKAGE = Path(peftbench.__file__).parent

FILES = {
    "__init__.py": "",
    "stage.py": (
        '"""Doc."""\nimport numpy\nfrom peftbench import helper\n\n\n'
        "def run():\n    from .inner import deep\n    return deep.f()\n"
    ),
    "helper.py": (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from peftbench.typing_only import T\nVALUE = 1\n"
    ),
    "typing_only.py": "T = int\n",
    "unused.py": "x = 1\n",
    "inner/__init__.py": "from ..reexported import thing\n",
    "inner/deep.py": "def f():\n    # why\n    return 1\n",
    "reexported.py": "thing = 2\n",
    "data.py": 'FINGERPRINT_FILES = ("t.jinja",)\n',
    "t.jinja": "hello",
    "quiet.py": 'FINGERPRINT_EXEMPT = "why"\nimport peftbench.unused\n',
    "methods/__init__.py": "",
    "methods/a.py": "A = 1\n",
    "methods/b.py": "B = 1\n",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "script.py").write_text(
        "import peftbench.stage\nimport peftbench.data\nimport peftbench.quiet\n"
    )
    return tmp_path


def code(tree, *components):
    return Fingerprinter(tree).code(tree / "script.py", components)


def edited(tree, name, old, new, *components):
    before = code(tree, *components)
    text = (tree / name).read_text()
    assert old in text
    (tree / name).write_text(text.replace(old, new))
    return changes(before, code(tree, *components))


def test_the_closure_is_what_can_run(tree):
    assert set(code(tree)["modules"]) == {
        "script.py",
        "stage",
        "helper",
        "inner",
        "inner.deep",
        "reexported",
        "data",
        "data:t.jinja",
    }


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("stage.py", '"""Doc."""', '"""Another text."""'),
        ("stage.py", '"""Doc."""\n', ""),
        ("inner/deep.py", "# why", "# another why\n\n"),
        ("stage.py", "return deep.f()", "return (\n        deep . f( )\n    )"),
        ("helper.py", "from peftbench.typing_only import T", "from peftbench.unused import x"),
        ("typing_only.py", "int", "str"),
        ("unused.py", "1", "2"),
        ("quiet.py", "import peftbench.unused", "import peftbench.methods.a"),
        ("methods/a.py", "1", "2"),
        ("methods/__init__.py", "", '"""Now with a docstring."""'),
    ],
)
def test_what_cannot_change_a_result_does_not_count(tree, name, old, new):
    assert edited(tree, name, old, new, "peftbench.methods.b") == []


@pytest.mark.parametrize(
    "name, old, new, said",
    [
        ("stage.py", "deep.f()", "deep.f() + 1", "stage changed"),
        ("helper.py", "VALUE = 1", "VALUE = 2", "helper changed"),
        ("inner/deep.py", "return 1", "return 1.0", "inner.deep changed"),
        ("reexported.py", "2", "3", "reexported changed"),
        ("t.jinja", "hello", "hello ", "data:t.jinja changed"),
        ("script.py", "import peftbench.stage", "import peftbench.stage as s", "script.py changed"),
        ("methods/b.py", "1", "2", "methods.b changed"),
        ("methods/__init__.py", "", "X = 1", "methods is new"),
    ],
)
def test_what_can_change_a_result_counts_and_is_named(tree, name, old, new, said):
    assert edited(tree, name, old, new, "peftbench.methods.b") == [said]


def test_a_new_import_brings_its_module_in(tree):
    found = edited(tree, "stage.py", "import numpy", "import numpy\nfrom . import unused")
    assert found == ["stage changed", "unused is new"]


def test_import_module_by_a_literal_name_counts(tree):
    found = edited(
        tree, "helper.py", "VALUE = 1", "import importlib\nimportlib.import_module('peftbench.unused')"
    )
    assert "unused is new" in found


def test_component_of_that_run_only(tree):
    assert "methods.a" in code(tree, "peftbench.methods.a")["modules"]
    assert "methods.b" not in code(tree, "peftbench.methods.a")["modules"]


def test_missing_pieces_are_one_line(tree):
    with pytest.raises(UserError, match=r"module peftbench\.methods\.c does not exist"):
        code(tree, "peftbench.methods.c")
    (tree / "t.jinja").unlink()
    with pytest.raises(UserError, match=r"t\.jinja \(wanted by data.py\): No such file"):
        code(tree)
    (tree / "helper.py").write_text("def f(:\n")
    with pytest.raises(UserError, match=r"helper.py, line 1: syntax error"):
        code(tree)


def test_versions_count_where_the_package_is_imported():
    bare = {"modules": {}, "packages": {}}
    wanted = ["torch", "transformers", "tokenizers"]
    assert with_versions(bare, frozenset({"numpy"}), wanted, "minor")["packages"] == {}
    assert with_versions(bare, frozenset({"torch"}), wanted, "none")["packages"] == {}
    found = with_versions(bare, frozenset({"torch", "transformers"}), wanted, "minor")["packages"]
    assert set(found) == {"torch", "transformers", "tokenizers"}
    assert all(version.count(".") == 1 for version in found.values())


def test_granularity_of_versions():
    assert cut_version("torch", "major").count(".") == 0
    assert cut_version("torch", "patch").count(".") == 2
    planned = {"modules": {}, "packages": {"torch": cut_version("torch", "minor")}}
    assert changes(planned, {"modules": {}, "packages": {}}) == []
    planned["packages"]["torch"] = "1.0"
    assert changes(planned, {"modules": {}, "packages": {}})[0].startswith("torch was 1.0, is ")


def test_the_exempt_modules_are_these():
    """Whoever exempts another module says here that it cannot change a result."""
    exempt = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FINGERPRINT_EXEMPT":
                exempt.add(str(path.relative_to(PACKAGE)))
    assert exempt == {
        "__init__.py",
        "addresses.py",
        "canonical.py",
        "claims_file.py",
        "claims_types.py",
        "errors.py",
        "failures.py",
        "fingerprint.py",
        "job.py",
        "lease.py",
        "judging/http.py",
        "outputs.py",
        "provenance.py",
        "retrieve/fetch.py",
        "retrieve/hub.py",
        "retrieve/hub_cache.py",
        "retrieve/local.py",
        "retrieve/origin.py",
        "retrieve/pin.py",
        "retrieve/transfer.py",
        "retrieve/url.py",
        "running.py",
        "spec.py",
        "stages.py",
        "store.py",
        "training/interrupt.py",
        "training/launch.py",
        "training/progress.py",
        "views.py",
        "warm.py",
    }


def test_a_thousand_fingerprints_take_less_than_a_second():
    printer = Fingerprinter(PACKAGE)
    script = PACKAGE.parent.parent / "workflow/scripts/train_adapter.py"
    methods = ["lora", "adapter", "prefix", "ia3"]
    start = time.process_time()
    for number in range(1000):
        printer.code(script, (f"peftbench.methods.{methods[number % 4]}",))
    assert time.process_time() - start < 1.0
