"""Tables by what a config calls them: local files by their format, or a dataset of the Hub."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset as Table
from datasets import load_dataset

from kd_data.datasets.tables import check_files, quiet_datasets

LOCAL = ("json", "csv", "parquet")


def load_table(
    source: str, split: str, data_files: Any, columns: Sequence[str], **options: Any
) -> Table:
    """The rows of a source, seen to have these columns.

    Args:
        source: ``json``, ``csv`` or ``parquet`` with ``data_files``, or a name on the Hub.
        split: Such as ``train`` or ``train[:10%]``.
        data_files: A path, or several.
        columns: Names; of a nested one with dots, such as ``translation.de``.
        **options: Further ones of ``datasets.load_dataset``, such as ``name``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it cannot be loaded, has no rows, or lacks a column.
    """
    if source in LOCAL:
        if data_files is None:
            raise ValueError(f"source is {source}, so data_files must be set")
        files = [data_files] if isinstance(data_files, str) else list(data_files)
        check_files(files)
        options["data_files"] = files
    elif data_files is not None:
        options["data_files"] = data_files
    try:
        with quiet_datasets():
            table = load_dataset(source, split=split, **options)
    except Exception as err:  # a reader may raise anything, and the Hub too
        why = " ".join(str(err.__cause__ or err).split()) or type(err).__name__
        raise ValueError(f"{source}: cannot read rows: {why}") from err
    if not isinstance(table, Table) or len(table) == 0:
        raise ValueError(f"{source}: split {split} has no rows to look up by number")
    for column in columns:
        first = column.partition(".")[0]
        if first not in table.column_names:
            raise ValueError(f"{source}: no column {first!r} among {', '.join(table.column_names)}")
    return table


def cell(row: Any, column: str) -> Any:
    """A row's value, of a nested column by dots; of several records it is the first one's.

    Raises:
        ValueError: If there is no such value.
    """
    value = row
    for name in column.split("."):
        value = value[0] if isinstance(value, list) and value else value
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"there is no {column}")
        value = value[name]
    return value


def checked_text(value: Any, column: str) -> str:
    """A column's value, seen to be a text.

    Raises:
        ValueError: If it is empty or none.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column} is {value!r}; it must be a text that is not empty")
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
