"""Columns of text from local files: CSV, TSV, JSON, JSON Lines, Parquet."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from datasets import Dataset as Table
from datasets import Features, Value, load_dataset, logging
from datasets.exceptions import DatasetGenerationError

from hf_models.missing import missing

# Ending -> datasets' reader and its options.
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {"sep": ","}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_TEXT = (Value("string"), Value("large_string"))


def read_texts(files: Sequence[str | Path], split: str, columns: Sequence[str]) -> Table:
    """The rows of ``files``, memory-mapped, after a check that ``columns`` hold nothing but text.

    The ending says what a file is, behind which ``.gz``, ``.bz2``, ``.xz`` or ``.zst`` may follow.
    All fields of CSV and TSV are text, numbers too, and an empty one is no text.

    Args:
        files: Local files of one format.
        split: ``train``, or a part of it such as ``train[:10%]``.
        columns: Names of columns.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the files' formats differ or are unknown, a file cannot be read, a column is
            missing or holds something else than text, or there are no rows.
    """
    paths = [Path(file) for file in files]
    names = ", ".join(map(str, paths))
    reader, options = _reader(paths)
    check_files(paths)
    try:
        if reader == "csv":
            options = options | as_text(paths, options["sep"])
        if reader == "parquet" and not all(pq.read_metadata(path).num_rows for path in paths):
            raise ValueError("a file has none")
        with quiet_datasets():
            table = load_dataset(reader, data_files=list(map(str, paths)), split=split, **options)
    except (DatasetGenerationError, ValueError, OSError) as error:
        why = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{names}: cannot read rows: {why}") from error
    for column in columns:
        check_text(table, column, names)
    return table


def check_files(files: Iterable[str | Path]) -> None:
    """Make sure that files are there and hold something.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one is empty.
    """
    for path in map(Path, files):
        if not path.is_file():
            raise FileNotFoundError(missing(path, "file"))
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty")


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep datasets from logging what it raises as well."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _reader(paths: Sequence[Path]) -> tuple[str, dict[str, Any]]:
    """The one reader of all files."""
    found = []
    for path in paths:
        whole = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
        if whole.suffix.lower() not in _READERS:
            raise ValueError(f"{path}: its ending must be one of {', '.join(_READERS)}")
        found.append(_READERS[whole.suffix.lower()])
    for path, reader in zip(paths, found, strict=True):
        if reader != found[0]:
            raise ValueError(f"{path} has another format than {paths[0]}: give files of one format")
    return found[0]


def as_text(paths: Sequence[Path], sep: str) -> dict[str, Any]:
    """The options with which every field of CSV files is read as it stands.

    Left alone, pandas takes columns of numbers for numbers, a text such as ``None`` for nothing,
    and a first row with more fields than the header for one that begins with its own name.

    Raises:
        ValueError: If a file has no rows, or other columns than the first one.
    """
    headers = [_header(path, sep) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        if header != headers[0]:
            raise ValueError(
                f"{path} has the columns {', '.join(header)}, but {paths[0]} has "
                f"{', '.join(headers[0])}"
            )
    features = Features({column: Value("string") for column in headers[0]})
    return {"features": features, "keep_default_na": False, "na_values": [""]}


def _header(path: Path, sep: str) -> list[str]:
    # Without a header, a first row of more fields than the columns' names is an error.
    rows = pd.read_csv(path, sep=sep, header=None, nrows=2, dtype=str, keep_default_na=False)
    if len(rows) < 2:
        raise ValueError(f"{path} has none")
    return [str(name) for name in rows.iloc[0]]


def is_text(table: Table, column: str) -> bool:
    """Whether a table has such a column, and texts in it."""
    return table.features.get(column) in _TEXT


def check_text(table: Table, column: str, names: str) -> None:
    """Make sure that a column is there and holds a text in every row.

    Args:
        table: The rows.
        column: Its name.
        names: What an error calls the table.

    Raises:
        ValueError: If it does not.
    """
    if column not in table.column_names:
        raise ValueError(f"{names}: no column {column!r} among {', '.join(table.column_names)}")
    if table.features[column] not in _TEXT:
        kind = getattr(table.features[column], "dtype", type(table.features[column]).__name__)
        raise ValueError(f"{names}: column {column!r} holds something else than text: {kind}")
    missing = table.data.column(column).is_null()
    if count := table.data.column(column).null_count:
        raise ValueError(
            f"{names}: column {column!r} holds something else than text: nothing in {count} of "
            f"{len(table)} rows, the first of them row {missing.index(True).as_py() + 1}"
        )
