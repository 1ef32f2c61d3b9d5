"""JSON schemas and key tables of the configuration files, made from ``peftbench.config_types``.

The text of a key is the string below its field. ``peftbench schema --write`` writes ``config/schema/*.json``,
the tables in ``config/README.md`` and ``docs/catalogue.md``; a test fails when they have drifted.
"""

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec

from peftbench.catalogue import PAGE, catalogue
from peftbench.config_types import FILES
from peftbench.reading import read_text
from peftbench.store import atomic_text

_TITLES = {
    "config": "config/config.yaml",
    "model": "config/models/<name>.yaml",
    "dataset": "config/datasets/<name>.yaml",
    "study": "config/studies/<name>.yaml",
}
_MARKER = re.compile(
    r"(<!-- keys of (\w+): made by 'peftbench schema --write' -->\n).*?(<!-- end -->)", re.DOTALL
)


def field_texts(kind: type) -> dict[str, str]:
    """The string below each field of a struct, as one line; fields without one are missing."""
    texts: dict[str, str] = {}
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    name = None
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts[name] = " ".join(str(node.value.value).split()).replace("``", "`")
            name = None
        else:
            name = None
    return texts


def schema(name: str) -> dict[str, Any]:
    """JSON schema of one kind of file, with the text of every key."""
    schemas, definitions = msgspec.json.schema_components([FILES[name]], ref_template="#/$defs/{name}")
    for struct_name, definition in definitions.items():
        kind = _structs(FILES[name])[struct_name]
        for key, text in field_texts(kind).items():
            properties = definition["properties"]
            if "$ref" in properties[key]:
                properties[key] = {"allOf": [properties[key]], "description": text}
            else:
                properties[key]["description"] = text
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": _TITLES[name],
        **schemas[0],
        "$defs": definitions,
    }


def _structs(kind: Any) -> dict[str, type]:
    """All struct types in a type, by name."""
    found: dict[str, type] = {}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        found[kind.__name__] = kind
        for field in msgspec.structs.fields(kind):
            found |= _structs(field.type)
    for part in get_args(kind):
        found |= _structs(part)
    return found


def key_table(name: str) -> str:
    """Markdown table of all keys of one kind of file: key, default, text; nested keys with dots."""
    lines = ["| key | default | what |", "|---|---|---|"]
    lines += [f"| `{key}` | {default} | {text} |" for key, default, text in _rows(FILES[name], "")]
    return "\n".join(lines) + "\n"


def _rows(kind: type[msgspec.Struct], prefix: str) -> list[tuple[str, str, str]]:
    rows = []
    texts = field_texts(kind)
    for field in msgspec.structs.fields(kind):
        inner = (
            field.type if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct) else None
        )
        if inner is None:
            text = texts.get(field.name, "").replace("|", "\\|")
            rows.append((prefix + field.name, _default(field), text))
        else:
            rows.extend(_rows(inner, f"{prefix}{field.name}."))
    return rows


def _default(field: Any) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return f"`{json.dumps(value)}`"


def outputs(root: Path) -> dict[Path, str]:
    """Every generated file and its content, for the project in ``root``."""
    made = {}
    for name in FILES:
        text = json.dumps(schema(name), indent=1, sort_keys=True) + "\n"
        made[root / f"config/schema/{name}.schema.json"] = text
    readme = root / "config/README.md"

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{key_table(match[2])}\n{match[3]}"

    made[readme] = _MARKER.sub(table, read_text(readme))
    if (root / "config/config.yaml").exists():
        made[root / PAGE] = catalogue(root)
    return made


def drifted(root: Path) -> list[Path]:
    """Generated files that are not what they should be."""
    return [p for p, text in outputs(root).items() if not p.exists() or p.read_text(encoding="utf-8") != text]


def write(root: Path) -> list[Path]:
    """Bring the generated files up to date; those that changed."""
    changed = drifted(root)
    for path in changed:
        atomic_text(path, outputs(root)[path])
    return changed
