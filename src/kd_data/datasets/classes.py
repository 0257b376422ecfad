"""The class of each row of a table, found for all rows at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel
from datasets import Dataset as Table


def class_ids(table: Table, column: str, names: Sequence[str] | None, where: str) -> np.ndarray:
    """The numbers of the rows' classes, int64 [N].

    Args:
        table: The rows.
        column: Of whole numbers, of a ``ClassLabel``, or of texts: names, or numbers as CSV has
            them.
        names: The names in the order of their numbers; None: the column has numbers.
        where: What an error calls the table.

    Raises:
        ValueError: If a row has no class, or one that is not among ``names``.
    """
    names = None if names is None else _checked(names)
    feature = table.features[column]
    if names is not None and isinstance(feature, ClassLabel) and feature.names != names:
        raise ValueError(
            f"{where}: column {column!r} has an order of its own: {', '.join(feature.names)}; "
            "leave out labels"
        )
    values = table.data.column(column)
    where = f"{where}: column {column!r}"
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        numbers = _numbers(values, names, where)
    elif pa.types.is_integer(values.type) or pa.types.is_boolean(values.type):
        numbers = values.cast(pa.int64())
    else:
        raise ValueError(f"{where} holds {values.type}; a class is a whole number or a name")
    _check_numbers(numbers, names, where)
    return numbers.to_numpy()


def _checked(names: Sequence[str]) -> list[str]:
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"labels has {name!r}, which is no text; put it in quotes")
    if len(set(names)) < len(names):
        raise ValueError(f"labels has a name twice: {', '.join(names)}")
    return list(names)


def _numbers(values: Any, names: list[str] | None, where: str) -> Any:
    """The numbers that texts stand for."""
    if names is not None:
        known = pc.index_in(values, value_set=pa.array(names, values.type))
        if known.null_count == 0:
            return known.cast(pa.int64())
    if pc.all(pc.match_substring_regex(values, r"^-?[0-9]{1,9}$")).as_py():
        return values.cast(pa.int64())
    if names is None:
        some = ", ".join(pc.unique(values).to_pylist()[:8])
        raise ValueError(
            f"{where} holds names ({some}); give labels: [...], in the order of their numbers"
        )
    row = pc.index(known.is_null(), True).as_py()
    raise ValueError(
        f"{where} is {values[row].as_py()!r} in row {row + 1}; labels has {', '.join(names)}"
    )


def _check_numbers(numbers: Any, names: list[str] | None, where: str) -> None:
    if numbers.null_count:
        row = pc.index(numbers.is_null(), True).as_py()
        raise ValueError(f"{where} is empty in row {row + 1}; leave the row out, or mend it")
    smallest, largest = pc.min_max(numbers).as_py().values()
    if largest == -1:
        raise ValueError(f"{where} is -1 everywhere: this split has no labels; take another")
    if smallest < 0:
        row = pc.index(pc.less(numbers, 0), True).as_py()
        raise ValueError(
            f"{where} is {numbers[row]} in row {row + 1}, but classes are counted from 0; leave "
            "the row out, or mend it"
        )
    if names is not None and largest >= len(names):
        row = pc.index(numbers, largest).as_py()
        raise ValueError(
            f"{where} is {largest} in row {row + 1}, but labels has {len(names)} names"
        )
