"""Fingerprint of the code behind a result: the syntax trees of everything its script can import.

Comments, docstrings, formatting, positions and ``if TYPE_CHECKING`` blocks do not count; imports inside
functions do. Modules of this package are followed, other packages enter by version. A module may declare

- ``FINGERPRINT_FILES = ("templates/x.jinja",)``: data files beside it whose bytes count too;
- ``FINGERPRINT_EXEMPT = "why"``: it carries or names results but cannot change one (locks, records), so
  neither it nor what it imports counts. ``tests/test_fingerprint.py`` holds the list of such modules.

Imports through computed names are invisible: whoever loads a module by name (methods, metrics, data
sources) hands that module over as a component (``peftbench.stages``).
"""

import ast
import atexit
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from peftbench.errors import UserError

FINGERPRINT_EXEMPT = "names results; does not compute them"
PACKAGE = "peftbench"
HASH_LENGTH = 8
IMPLIED_PACKAGES = {"transformers": ("tokenizers",)}
"""Packages that decide results whenever another one is imported, though no module of ours names them."""

Code = dict[str, dict[str, str]]
"""``{"modules": {name: hash}, "packages": {name: version}}``; names of modules without the package's own."""


class Module:
    """One parsed source file: its hash, and what it imports."""

    def __init__(self, name: str, path: Path, is_package: bool, resolver: "Fingerprinter") -> None:
        try:
            parsed = _parsed(path.read_bytes())
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except SyntaxError as error:
            raise UserError(f"{path}, line {error.lineno}: syntax error: {error.msg}") from None
        self.name = name
        self.path = path
        self.is_package = is_package
        self.exempt: bool = parsed["exempt"]
        self.files: tuple[str, ...] = tuple(parsed["files"])
        self.hash: str = parsed["hash"]
        """Empty for a file without code: adding an empty ``__init__.py`` changes nothing."""
        self.imports: set[str] = set()
        self.third_party: set[str] = set()
        for target in self._targets(parsed, resolver):
            if target == PACKAGE or target.startswith(PACKAGE + "."):
                self.imports.update(resolver.parents_and_self(target))
            else:
                self.third_party.add(target.partition(".")[0])

    def _targets(self, parsed: dict[str, Any], resolver: "Fingerprinter") -> Iterator[str]:
        yield from parsed["imports"]
        for level, module, names in parsed["from"]:
            base = self._absolute(level, module)
            yield base
            yield from (f"{base}.{name}" for name in names if resolver.locate(f"{base}.{name}"))

    def _absolute(self, level: int, module: str) -> str:
        if not level:
            return module
        parts = self.name.split(".")
        parts = parts[: len(parts) - level + (1 if self.is_package else 0)]
        return ".".join([*parts, *([module] if module else [])])


class Fingerprinter:
    """Fingerprints of the code under one package folder; parses each file once."""

    def __init__(self, package_dir: Path) -> None:
        self.package_dir = package_dir
        self._modules: dict[str, Module] = {}
        self._files: dict[Path, str] = {}
        self._located: dict[str, tuple[Path, bool] | None] = {}
        self._closures: dict[tuple[Path, tuple[str, ...], tuple[str, ...]], tuple[Code, frozenset[str]]] = {}

    def locate(self, name: str) -> tuple[Path, bool] | None:
        """File of a module of the package and whether it is an ``__init__``; None where there is none."""
        if name not in self._located:
            self._located[name] = self._find(name)
        return self._located[name]

    def _find(self, name: str) -> tuple[Path, bool] | None:
        if name != PACKAGE and not name.startswith(PACKAGE + "."):
            return None
        base = self.package_dir.joinpath(*name.split(".")[1:])
        if (base / "__init__.py").is_file():
            return base / "__init__.py", True
        if name != PACKAGE and base.with_name(base.name + ".py").is_file():
            return base.with_name(base.name + ".py"), False
        return None

    def parents_and_self(self, name: str) -> Iterator[str]:
        """The packages above a module, which Python runs first, and the module, as far as they are files."""
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            prefix = ".".join(parts[:end])
            if self.locate(prefix):
                yield prefix

    def module(self, name: str) -> Module:
        """The parsed module of that name; ``UserError`` where there is none."""
        if name not in self._modules:
            located = self.locate(name)
            if located is None:
                raise UserError(f"module {name} does not exist under {self.package_dir}")
            self._modules[name] = Module(name, *located, resolver=self)
        return self._modules[name]

    def code(self, script: Path, components: Iterable[str] = (), files: Iterable[str] = ()) -> Code:
        """Hashes of all code that can run in a job of that script.

        ``components`` are modules that it loads by name, ``files`` are data files relative to the package's
        folder. The packages are listed without their versions (see ``with_versions``).
        """
        key = (script, tuple(components), tuple(files))
        if key not in self._closures:
            self._closures[key] = self._close(*key)
        return self._closures[key][0]

    def packages(
        self, script: Path, components: Iterable[str] = (), files: Iterable[str] = ()
    ) -> frozenset[str]:
        """Top-level names of everything else that the same code imports."""
        key = (script, tuple(components), tuple(files))
        self.code(*key)
        return self._closures[key][1]

    def _close(
        self, script: Path, components: tuple[str, ...], files: tuple[str, ...]
    ) -> tuple[Code, frozenset[str]]:
        start = Module(script.stem, script, False, self)
        hashes = {script.name: start.hash}
        third_party = set(start.third_party)
        waiting = sorted(start.imports.union(*(self.parents_and_self(name) for name in components)))
        for name in components:
            self.module(name)  # a missing component is an error, a missing import is Python's business
        seen = set(waiting)
        while waiting:
            module = self.module(waiting.pop())
            if module.exempt:
                continue
            third_party |= module.third_party
            label = module.name.removeprefix(PACKAGE + ".")
            if module.hash:
                hashes[label] = module.hash
            for file in module.files:
                hashes[f"{label}:{file}"] = self._file_hash(module.path.parent / file, module.path)
            fresh = module.imports - seen
            seen |= fresh
            waiting.extend(fresh)
        for file in files:
            hashes[file] = self._file_hash(self.package_dir / file, script)
        return {"modules": dict(sorted(hashes.items())), "packages": {}}, frozenset(third_party)

    def _file_hash(self, path: Path, wanted_by: Path) -> str:
        if path not in self._files:
            try:
                with path.open("rb") as stream:
                    self._files[path] = hashlib.file_digest(stream, "sha256").hexdigest()[:HASH_LENGTH]
            except OSError as error:
                raise UserError(f"{path} (wanted by {wanted_by.name}): {error.strerror}") from None
        return self._files[path]


def _parsed(source: bytes) -> dict[str, Any]:
    """What a source file is to a fingerprint; remembered by its bytes, since every cluster job plans anew."""
    key = hashlib.sha256(source).hexdigest()
    memory = _memory()
    if key not in memory.known:
        memory.known[key] = _parse(source)
        memory.changed = True
    found: dict[str, Any] = memory.known[key]
    return found


def _parse(source: bytes) -> dict[str, Any]:
    tree = ast.parse(source)
    constants = dict(_string_constants(tree))
    reader = _Reader()
    reader.read(tree)
    body = "".join(reader.text)
    return {
        "exempt": "FINGERPRINT_EXEMPT" in constants,
        "files": list(constants.get("FINGERPRINT_FILES", ())),
        "hash": hashlib.sha256(body.encode()).hexdigest()[:HASH_LENGTH] if body != "Module(body=)" else "",
        "imports": reader.plain_imports,
        "from": [[n.level, n.module or "", [a.name for a in n.names]] for n in reader.from_imports],
    }


class _Memory:
    """Parsed sources in the user's cache folder; whatever goes wrong with it costs time and nothing else."""

    def __init__(self) -> None:
        # another reader, or a Python with another syntax tree, starts anew
        own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:HASH_LENGTH]
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        self.file = Path(cache) / "peftbench" / f"sources-{version}-{own}.json"
        self.known: dict[str, Any] = {}
        self.changed = False
        with contextlib.suppress(OSError, ValueError):
            self.known = json.loads(self.file.read_bytes())
        atexit.register(self.save)

    def save(self) -> None:
        """Write it down if anything is new; the last writer wins."""
        if not self.changed:
            return
        temporary = self.file.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self.known))
            temporary.replace(self.file)
            self.changed = False


@cache
def _memory() -> _Memory:
    return _Memory()


def with_versions(code: Code, imported: frozenset[str], packages: Iterable[str], granularity: str) -> Code:
    """The code with the versions of those ``packages`` that it imports, cut to ``granularity``."""
    reached = set(imported)
    for name, implied in IMPLIED_PACKAGES.items():
        if name in imported:
            reached.update(implied)
    versions = (
        {} if granularity == "none" else {p: cut_version(p, granularity) for p in packages if p in reached}
    )
    return {"modules": code["modules"], "packages": dict(sorted(versions.items()))}


def cut_version(package: str, granularity: str) -> str:
    """Installed version of a package, cut after its major, minor or patch number; ``none`` if missing."""
    version = _version(package)
    public = version.partition("+")[0]
    return ".".join(public.split(".")[: {"major": 1, "minor": 2, "patch": 3}[granularity]])


def changes(planned: Code, live: Code) -> list[str]:
    """What differs between the code of a ticket and the code on disk, one phrase each."""
    found = []
    for name in sorted(planned["modules"].keys() | live["modules"].keys()):
        before, now = planned["modules"].get(name), live["modules"].get(name)
        if before != now:
            verb = "changed" if before and now else "is new" if now else "is no longer used"
            found.append(f"{name} {verb}")
    for name, version in planned["packages"].items():
        installed = _version(name)
        if installed != version and not installed.partition("+")[0].startswith(version + "."):
            found.append(f"{name} was {version}, is {installed}")
    return found


class _Guard:
    """Lets a job import only the code that its ticket names; finds nothing itself."""

    def __init__(self, modules: dict[str, str]) -> None:
        self.modules = modules

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """``UserError`` where the source of a planned module is another one by now."""
        planned = self.modules.get(name.removeprefix(PACKAGE + "."))
        if planned is None or not name.startswith(PACKAGE + "."):
            return
        found = PathFinder.find_spec(name, path)
        if found is None or not found.origin or not found.origin.endswith(".py"):
            return
        if _parsed(Path(found.origin).read_bytes())["hash"] != planned:
            raise UserError(
                f"code changed while this job ran or waited ({name.removeprefix(PACKAGE + '.')} changed): "
                "nothing was stored, run snakemake again"
            )


def guard_imports(code: Code) -> None:
    """From now on, refuse to import a module of ``code`` that is not as it was planned.

    A job checks its code as it starts, and then imports much of it late: after waiting for another process, or
    after hours of training.
    """
    sys.meta_path.insert(0, _Guard(code["modules"]))  # no subclass: importlib.abc costs 15 ms


def installed_package_dir() -> Path:
    """Folder of the package that is running."""
    return Path(__file__).parent


@cache
def default_fingerprinter() -> Fingerprinter:
    """The fingerprinter of the package that is running; one per process."""
    return Fingerprinter(installed_package_dir())


def is_installed(package: str) -> bool:
    """Whether there is an installed package of that name."""
    return _version(package) != "none"


@cache
def _version(package: str) -> str:
    import importlib.metadata  # costs as much as the rest of this module

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _string_constants(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """The module's ``FINGERPRINT_*`` declarations."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name.startswith("FINGERPRINT_"):
                try:
                    yield name, ast.literal_eval(node.value)
                except ValueError:
                    raise UserError(f"{name} must be a literal, line {node.lineno}") from None


def _called_name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


class _Reader:
    """One walk over a tree: its text, and the imports in it.

    The text holds names of nodes and their set fields: no positions, no bare strings, nothing under ``if
    TYPE_CHECKING``. Empty fields are left out, so fields that a later Python adds (``type_params``) do not
    show until they are used.
    """

    def __init__(self) -> None:
        self.text: list[str] = []
        self.plain_imports: list[str] = []
        self.from_imports: list[ast.ImportFrom] = []

    def read(self, node: ast.AST) -> None:
        """Append one node and all below it."""
        if isinstance(node, ast.If) and _called_name(node.test) == "TYPE_CHECKING":
            self._read_list(node.orelse)
            return
        if isinstance(node, ast.Import):
            self.plain_imports.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            self.from_imports.append(node)
        elif isinstance(node, ast.Call):
            self._read_import_module(node)
        self.text.append(type(node).__name__ + "(")
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, ast.AST):
                if field != "ctx":
                    self.text.append(field + "=")
                    self.read(value)
            elif isinstance(value, list):
                if value or field == "body":
                    self.text.append(field + "=")
                    self._read_list(value)
            elif field not in ("kind", "type_comment") and (
                value is not None or isinstance(node, ast.Constant)
            ):
                self.text.append(f"{field}={value!r},")
        self.text.append(")")

    def _read_list(self, items: list[Any]) -> None:
        for item in items:
            if not isinstance(item, ast.AST):
                self.text.append(f"{item!r},")
            elif not (isinstance(item, ast.Expr) and _is_string(item.value)):
                self.read(item)

    def _read_import_module(self, node: ast.Call) -> None:
        if node.args and _called_name(node.func) == "import_module" and _is_string(node.args[0]):
            self.plain_imports.append(node.args[0].value)  # type: ignore[attr-defined]


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
