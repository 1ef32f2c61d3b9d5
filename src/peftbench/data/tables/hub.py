"""Rows of a dataset repository of the Hugging Face hub, from the folder it was retrieved into.

The ``datasets`` library does the reading and says which files are which configuration and split. It is asked for
the files of one split only: the library itself insists on all files of all splits, which were perhaps not wanted.
Pictures keep their stored bytes: rows come as Arrow, where nothing decodes them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftbench.errors import UserError, did_you_mean

_BATCH = 64
"""Rows turned into Python at a time: they may hold pictures."""


def hub_rows(folder: Path, config: str, split: str, columns: set[str] | None) -> Iterator[dict[str, Any]]:
    """Rows of one split, in order; of parquet only ``columns`` are read (None: all).

    Raises ``UserError`` where the repository has no such configuration or split, or the files are not there.
    """
    import datasets
    import pyarrow as pa
    from datasets.data_files import DataFilesList
    from datasets.load import infer_module_for_data_files_list

    paths = split_files(folder, config, split)
    listed = DataFilesList(paths, origin_metadata=[()] * len(paths))
    module, options = infer_module_for_data_files_list(listed)
    if module is None:
        raise UserError(f"{folder}: split {split!r}: no known format: {', '.join(paths[:3])}")
    if module == "parquet" and columns is not None:
        options = {**options, "columns": _present(paths[0], columns)}
    progress = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:  # nothing is kept: results are ours to keep
            stream = datasets.load_dataset(
                module, data_files={"rows": paths}, split="rows", streaming=True, cache_dir=cache, **options
            )
            for table in stream.with_format("arrow").iter(batch_size=_BATCH):
                yield from table.to_pylist()
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{folder}: split {split!r}: cannot be read: {_one_line(error)}") from None
    finally:
        if progress:
            datasets.enable_progress_bars()


def split_files(folder: Path, config: str, split: str) -> list[str]:
    """Files of one split of one configuration, by the metadata of the README, else by the files' names."""
    from datasets.data_files import EmptyDatasetError, resolve_pattern

    patterns, base = _patterns(folder, config)
    if split not in patterns:
        raise UserError(f"{folder}: has no split {split!r}{did_you_mean(split, patterns)}")
    found: list[str] = []
    for pattern in patterns[split]:
        try:
            found += resolve_pattern(pattern, base_path=base)
        except (FileNotFoundError, EmptyDatasetError):
            raise UserError(
                f"{folder}: split {split!r} is in {pattern}, which was not retrieved: check 'files' of the origin"
            ) from None
    return found


def _patterns(folder: Path, config: str) -> tuple[dict[str, list[str]], str]:
    """Split -> patterns of a configuration, and the folder that they are relative to."""
    from datasets.data_files import EmptyDatasetError, get_data_patterns, sanitize_patterns
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    readme = folder / "README.md"
    configs: dict[str, Any] = {}
    if readme.is_file():
        try:
            card = DatasetCard.load(readme, ignore_metadata_errors=True)
            configs = dict(MetadataConfigs.from_dataset_card_data(card.data))
        except (ValueError, OSError) as error:
            raise UserError(f"{readme}: its metadata cannot be read: {_one_line(error)}") from None
    if config and config not in configs and (configs or config != "default"):
        raise UserError(f"{folder}: has no configuration {config!r}{did_you_mean(config, configs)}")
    name = config or _default(folder, configs)
    settings = configs.get(name, {})
    base = str(folder / settings.get("data_dir", ""))
    if "data_files" in settings:
        return sanitize_patterns(settings["data_files"]), base
    try:
        return get_data_patterns(base), base
    except EmptyDatasetError:
        raise UserError(f"{folder}: no data files were retrieved: check 'files' of the origin") from None


def _default(folder: Path, configs: dict[str, Any]) -> str:
    marked = [name for name, settings in configs.items() if settings.get("default")]
    if marked:
        return marked[0]
    if "default" in configs or len(configs) <= 1:
        return "default" if "default" in configs else next(iter(configs), "")
    raise UserError(f"{folder}: name a configuration (config): there is {', '.join(configs)}")


def _present(path: str, columns: set[str]) -> list[str]:
    """Those of the columns that a parquet file has, in its order; all where none of them would be left."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names: list[str] = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not readable parquet ({_one_line(error)}): retrieve it again") from None
    return [name for name in names if name in columns] or names


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
