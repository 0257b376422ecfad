"""Texts, or pairs of them, and their classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel
from torch.utils.data import Dataset

from kd_data.datasets.sources import cell, checked_text, load_table, require_tokenizer


def classification_dataset(
    tokenizer: Any,
    source: str,
    text_column: str,
    text_pair_column: str | None = None,
    label_column: str = "label",
    labels: Sequence[str] | None = None,
    split: str = "train",
    data_files: str | Sequence[str] | None = None,
    max_samples: int | None = None,
    **load_dataset_kwargs: Any,
) -> "ClassificationDataset":
    """Texts with a class each, from local files or the Hub.

    ::

        {_component_: kd_data.classification_dataset, source: glue, name: mnli, split: train,
         text_column: premise, text_pair_column: hypothesis}

    Args:
        tokenizer: That of a Hugging Face directory, `hf_models.tokenizer`.
        source: ``json``, ``csv`` or ``parquet`` with ``data_files``, or a name on the Hub.
        text_column: Column of the text.
        text_pair_column: Column of a second text, if there is one.
        label_column: Column of the class: its number, or its name.
        labels: The names of the classes in the order of their numbers, where the column has names.
        split: Such as ``train`` or ``validation_matched``.
        data_files: One or several local files.
        max_samples: Only so many rows, the first ones.
        **load_dataset_kwargs: Further arguments of ``datasets.load_dataset``, such as ``name``.

    Returns:
        Dataset of ``{"tokens": [...], "labels": [class]}``, and ``token_type_ids`` if the tokenizer
        has them.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the source cannot be read, lacks a column, or a label is none of ``labels``.
    """
    require_tokenizer(tokenizer)
    columns = [text_column, *([text_pair_column] if text_pair_column else []), label_column]
    table = load_table(source, split, data_files, columns, **load_dataset_kwargs)
    if max_samples is not None:
        table = table.select(range(min(max_samples, len(table))))
    return ClassificationDataset(tokenizer, table, columns[:-1], label_column, labels)


class ClassificationDataset(Dataset):
    """Rows of a table, tokenised one at a time. See `classification_dataset`."""

    def __init__(
        self,
        tokenizer: Any,
        table: Any,
        text_columns: Sequence[str],
        label_column: str,
        labels: Sequence[str] | None,
    ) -> None:
        self._tokenizer, self._table, self._columns = tokenizer, table, list(text_columns)
        self._classes = _classes(table, label_column, labels)

    def __len__(self) -> int:
        return len(self._classes)

    @property
    def largest_label(self) -> int:
        """The largest class of all rows."""
        return int(self._classes.max())

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        number = range(len(self))[index]
        row = self._table[number]
        texts = [checked_text(cell(row, column), column) for column in self._columns]
        return self._tokenizer.encode_text(*texts) | {"labels": [int(self._classes[number])]}


def _classes(table: Any, column: str, names: Sequence[str] | None) -> np.ndarray:
    """The class of each row, looked at all at once."""
    values = table.data.column(column).to_pylist()
    if isinstance(values[0], str):
        return np.array(_numbers(values, column, names))
    if names is not None and isinstance(table.features[column], ClassLabel):
        _check_order(table.features[column].names, column, names)
    for number, value in enumerate(values):
        if not isinstance(value, int) or value < 0:
            remedy = "its split may keep its labels secret; take another" if value == -1 else ""
            raise ValueError(
                f"row {number}: {column} is {value!r}, no class; {remedy or 'mend the data'}"
            )
    return np.array(values, dtype=np.int64)


def _numbers(values: Sequence[str], column: str, names: Sequence[str] | None) -> list[int]:
    if names is None:
        some = ", ".join(sorted(set(map(str, values)))[:8])
        raise ValueError(
            f"{column} holds names ({some}); give labels: [...], in the order of their numbers"
        )
    known = {name: number for number, name in enumerate(names)}
    for row, value in enumerate(values):
        if value not in known:
            raise ValueError(f"row {row}: {column} is {value!r}, none of {', '.join(names)}")
    return [known[value] for value in values]


def _check_order(found: Sequence[str], column: str, names: Sequence[str]) -> None:
    if list(names) != list(found):
        raise ValueError(
            f"{column} has its own order of classes ({', '.join(found)}); leave out labels"
        )
