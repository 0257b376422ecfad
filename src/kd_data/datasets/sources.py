"""Tables by what a config calls them: local files by their format, or a dataset of the Hub."""

from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from datasets import Dataset as Table
from datasets import load_dataset
from omegaconf import OmegaConf

from hf_models.missing import missing
from kd_data.datasets.filled import check_filled, without_empty
from kd_data.datasets.tables import as_text, check_files, is_text, quiet_datasets

LOCAL = ("json", "csv", "parquet")


def load_table(
    source: str,
    split: str,
    data_files: Any,
    columns: Sequence[str],
    max_samples: int | None = None,
    skip_empty: bool = False,
    **options: Any,
) -> Table:
    """The rows of a source, with these columns alone and no empty text in them.

    All fields of CSV are text as it stands, unless options say how it is to be read.

    Args:
        source: ``json``, ``csv`` or ``parquet`` with ``data_files``, or a name on the Hub.
        split: Such as ``train`` or ``train[:10%]``.
        data_files: A path, several, or those of each split.
        columns: Names; of a nested one with dots, such as ``translation.de``.
        max_samples: Only so many rows, the first ones.
        skip_empty: Leave rows with an empty text out, which are an error otherwise.
        **options: Further ones of ``datasets.load_dataset``, such as ``name``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it cannot be loaded, has no rows, lacks a column or a text.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples is {max_samples}; it must be at least 1")
    if data_files is not None:
        options["data_files"] = _plain(data_files)
    if source in LOCAL:
        _check_local_files(source, data_files)
    where = name_of(source, data_files)
    try:
        if source == "csv":
            options = _as_it_stands(options)
        with quiet_datasets():
            table = load_dataset(source, split=split, **options)
    except Exception as err:  # a reader may raise anything, and the Hub too
        why = " ".join(str(err.__cause__ or err).split()) or type(err).__name__
        raise ValueError(f"{where}: cannot read rows: {why}") from err
    if not isinstance(table, Table) or len(table) == 0:
        raise ValueError(f"{where}: split {split} has no rows to look up by number")
    table = _with_columns(table, columns, where)
    texts = [column for column in columns if is_text(table, column)]
    if skip_empty:
        table = without_empty(table, texts, where)
    if max_samples is not None:
        table = table.select(range(min(max_samples, len(table))))
    for column in texts:
        check_filled(table, column, where)
    return table


def name_of(source: str, data_files: Any) -> str:
    """What errors call a source: its files, or its name on the Hub."""
    return ", ".join(_paths(_plain(data_files))) if source in LOCAL and data_files else source


def cell(row: Mapping[str, Any], column: str) -> Any:
    """A row's value; of a column in a list of records, such as ``notes.text``, the first one's.

    Raises:
        ValueError: If the list is empty, or its records have no such field.
    """
    holder = _holder(row, column)
    value = row[holder]
    for name in column.removeprefix(holder).split(".")[1:]:
        value = value[0] if isinstance(value, list) and value else value
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"there is no {column}")
        value = value[name]
    return value


def require_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer that has not what encoders need.

    Raises:
        ValueError: If it has not.
    """
    if not hasattr(tokenizer, "encode_text"):
        raise ValueError(
            f"{type(tokenizer).__name__} cannot put an encoder's markers around a text; use "
            "tokenizer: {_component_: hf_models.tokenizer, checkpoint_dir: ...}"
        )


def _plain(value: Any) -> Any:
    """Paths as texts, in lists and dicts as ``load_dataset`` takes them."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(value, Mapping):
        return {key: _plain(files) for key, files in value.items()}
    if isinstance(value, str | Path):
        return str(value)
    return value if value is None else [str(file) for file in value]


def _paths(data_files: Any) -> list[str]:
    groups = data_files.values() if isinstance(data_files, Mapping) else [data_files]
    return [file for files in groups for file in ([files] if isinstance(files, str) else files)]


def _is_pattern(path: str) -> bool:
    return "://" in path or bool(set("*?[") & set(path))


def _check_local_files(source: str, data_files: Any) -> None:
    if not data_files:
        raise ValueError(f"source is {source}, so data_files must be set")
    for path in _paths(_plain(data_files)):
        if not _is_pattern(path):
            check_files([path])
        elif "://" not in path and not glob(path, recursive=True):
            raise FileNotFoundError(missing(path, "file"))


def _as_it_stands(options: dict[str, Any]) -> dict[str, Any]:
    """The options with which every field of CSV files is read as text."""
    paths = _paths(options["data_files"])
    # Whoever says more about a file than its separator knows how it is to be read.
    if any(map(_is_pattern, paths)) or options.keys() - {"data_files", "sep", "delimiter"}:
        return options
    by_ending = "\t" if any(".tsv" in Path(path).suffixes for path in paths) else ","
    sep = options.get("sep") or options.get("delimiter") or by_ending
    files = options["data_files"]
    return {"data_files": files, "sep": sep, **as_text(list(map(Path, paths)), sep)}


def _with_columns(table: Table, columns: Sequence[str], where: str) -> Table:
    if any(column not in table.column_names for column in columns):
        table = table.flatten()
    names = table.column_names
    for column in columns:
        if _holder(names, column) not in names:
            raise ValueError(f"{where}: no column {column!r} among {', '.join(names)}")
    return table.select_columns(list(dict.fromkeys(_holder(names, c) for c in columns)))


def _holder(names: Sequence[str] | Mapping[str, Any], column: str) -> str:
    """The table's column that ``column`` is, or lies in."""
    while column not in names and "." in column:
        column = column.rpartition(".")[0]
    return column
