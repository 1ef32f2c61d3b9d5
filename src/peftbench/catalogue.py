"""The page of all models, data sets and methods: made from their files, so that it cannot say anything else."""

from pathlib import Path

import msgspec

from peftbench.config import Settings, module_names
from peftbench.config_types import DatasetConfig, ModelConfig
from peftbench.retrieve.origin import Origin
from peftbench.study import method_module

PAGE = Path("docs/catalogue.md")
NOTE = "Made by `peftbench schema --write` from the files of `config/` and `src/peftbench/methods/`: do not edit."


def catalogue(root: Path) -> str:
    """Markdown of the page, for the project in ``root``."""
    settings = Settings.from_files(root)
    models = {name: settings.model(name, "the catalogue") for name in settings.names("model")}
    datasets = {name: settings.dataset(name, "the catalogue") for name in settings.names("dataset")}
    lines = ["# Models, data sets and methods", "", NOTE, "", "## Models", ""]
    lines += _table(
        [
            "file",
            "model",
            "from",
            "commit",
            "parameters",
            "language",
            "connector",
            "vision",
            "embeddings",
            "template",
        ],
        [_model(name, config, settings) for name, config in models.items()],
        numbers=range(4, 9),
    )
    lines += [
        "",
        "Parameters are the published ones, which every build is checked against; – where they are not known to the "
        "digit.",
        "",
        "## Data sets",
        "",
    ]
    lines += _table(
        ["file", "data set", "from", "commit", "training rows", "test rows", "metric", "base models saw it"],
        [_dataset(name, config) for name, config in datasets.items()],
        numbers=(4, 5),
    )
    lines += [
        "",
        "Rows are those after filtering and drawing; another number stops the preparation. “moving”: the file names a "
        "branch; `peftbench pin <file>` writes its commit down.",
        "",
        "## Methods",
        "",
    ]
    lines += _table(
        ["file", "method", "what", "places", "merges", "default settings"],
        [_method(name) for name in module_names("method") if name != "base"],
    )
    lines += [
        "",
        "Each file says where its defaults come from. Places: parts of a decoder layer that the axis `location` can "
        "name, the default first.",
        "",
    ]
    return "\n".join(lines)


def _model(name: str, config: ModelConfig, settings: Settings) -> list[str]:
    origins = _origins(config.source) if settings.base_of(name) == name else {}
    parts = config.parameters
    total = f"{sum(parts.values()):,}" if parts else "–"
    return [
        f"`{name}`",
        config.title,
        _places(origins)
        or f"as `{settings.base_of(name)}`" * (settings.base_of(name) != name)
        or "this repository",
        _pins(origins),
        total,
        *(
            f"{parts[part]:,}" if part in parts else "–"
            for part in ("language", "connector", "vision", "embeddings")
        ),
        config.names.template,
    ]


def _dataset(name: str, config: DatasetConfig) -> list[str]:
    origins = _origins(config.source)
    splits = config.splits
    return [
        f"`{name}`",
        config.title,
        _places(origins) or "this repository",
        _pins(origins),
        f"{splits['train']:,}" if "train" in splits else "evaluation only",
        f"{splits['test']:,}",
        config.metric.name,
        "yes" if config.seen else "no",
    ]


def _method(name: str) -> list[str]:
    module = method_module(name)
    defaults = msgspec.to_builtins(module.Config())
    places = sorted(module.LOCATIONS, key=lambda place: place != module.DEFAULT_LOCATION)
    return [
        f"`{name}`",
        str(getattr(module, "TITLE", name)),
        (module.__doc__ or "").partition("\n\n")[0].replace("\n", " ").replace("|", "\\|").replace("``", "`"),
        ", ".join(places),
        "yes" if module.MERGEABLE else "no",
        ", ".join(
            f"{key} {value}" for key, value in defaults.items() if value is not None and value is not False
        ),
    ]


def _origins(source: dict[str, object]) -> dict[str, Origin]:
    block = source.get("from", {})
    return (
        {name: msgspec.convert(entry, Origin) for name, entry in block.items()}
        if isinstance(block, dict)
        else {}
    )


def _places(origins: dict[str, Origin]) -> str:
    places = dict.fromkeys(
        o.hub or o.url.split("/")[2] if o.hub or o.url else o.path for o in origins.values()
    )
    return ", ".join(places)


def _pins(origins: dict[str, Origin]) -> str:
    hub = [origin for origin in origins.values() if origin.hub]
    if not hub:
        return "–"
    return ", ".join(dict.fromkeys(o.revision[:10] if o.pinned else "moving" for o in hub))


def _table(head: list[str], rows: list[list[str]], numbers: object = ()) -> list[str]:
    right = set(numbers)  # type: ignore[call-overload]
    align = ["--:" if place in right else ":--" for place in range(len(head))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, align, *rows)]
