"""Rows that have a text, seen in all of them at once."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset as Table

from kd_data.datasets.tables import check_text, is_text


def check_filled(table: Table, column: str, where: str) -> None:
    """Make sure that a column holds texts, none of them empty.

    Raises:
        ValueError: If it does not; the message names the first row.
    """
    if not is_text(table, column):
        check_text(table, column, where)
    filled = _filled(table, column)
    if not filled.all():
        raise ValueError(
            f"{where}: column {column!r} is empty in {(~filled).sum()} of {len(table)} rows, the "
            f"first of them row {filled.argmin() + 1}; mend them, or set skip_empty: true"
        )


def without_empty(table: Table, columns: Sequence[str], where: str) -> Table:
    """The rows that have a text in each of these columns of texts.

    Raises:
        ValueError: If there are none.
    """
    filled = np.all([_filled(table, column) for column in columns], axis=0)
    if not np.any(filled):
        raise ValueError(f"{where}: no row has a text in {' and '.join(columns)}")
    # Written out anew, so that its columns can be looked at as a whole.
    return table if np.all(filled) else table.select(np.flatnonzero(filled)).flatten_indices()


def _filled(table: Table, column: str) -> np.ndarray:
    """Whether a row has a text in a column, [N] bool."""
    return np.concatenate(
        [
            pc.not_equal(pc.utf8_trim_whitespace(chunk), pa.scalar("", chunk.type))
            .fill_null(False)
            .to_numpy(zero_copy_only=False)
            for chunk in table.data.column(column).chunks
        ]
    )
