"""Texts, or pairs of them, and their classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from kd_data.datasets.classes import class_ids
from kd_data.datasets.sources import load_table, name_of, require_tokenizer
from kd_data.datasets.tables import check_text


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
    skip_empty: bool = False,
    **load_dataset_kwargs: Any,
) -> "ClassificationDataset":
    """Texts with a class each, from local files or the Hub.

    ::

        {_component_: kd_data.classification_dataset, source: glue, name: mnli, split: train,
         text_column: premise, text_pair_column: hypothesis}

    Args:
        tokenizer: That of a Hugging Face directory, `hf_models.tokenizer`.
        source: ``json``, ``csv`` or ``parquet`` with ``data_files``, or a name on the Hub. All
            fields of CSV are read as text as it stands; see ``load_table``.
        text_column: Column of the text.
        text_pair_column: Column of a second text, if there is one.
        label_column: Column of the class: its number, or its name.
        labels: The names of the classes in the order of their numbers, where the column has names.
            In YAML names such as ``no`` need quotes.
        split: Such as ``train`` or ``validation_matched``.
        data_files: One or several local files.
        max_samples: Only so many rows, the first ones.
        skip_empty: Leave rows with an empty text out, of which GLUE's QQP has two; they are an
            error otherwise.
        **load_dataset_kwargs: Further arguments of ``datasets.load_dataset``, such as ``name``.

    Returns:
        Dataset of ``{"tokens": [...], "labels": [class]}``, and ``token_type_ids`` if the tokenizer
        has them.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the source cannot be read or lacks a column, if a row lacks a text or has a
            label that is none of ``labels``, or the tokenizer is not such a one.
    """
    require_tokenizer(tokenizer)
    texts = [text_column, *([text_pair_column] if text_pair_column else [])]
    table = load_table(
        source,
        split,
        data_files,
        [*texts, label_column],
        max_samples,
        skip_empty,
        **load_dataset_kwargs,
    )
    where = name_of(source, data_files)
    for column in texts:
        check_text(table, column, where)
    return ClassificationDataset(
        tokenizer, table, texts, class_ids(table, label_column, labels, where)
    )


class ClassificationDataset(Dataset):
    """Rows of a table, tokenised one at a time. See `classification_dataset`.

    Args:
        tokenizer: That of a Hugging Face directory.
        table: The rows.
        text_columns: Names of one or two columns.
        classes: The rows' classes, [N].

    Attributes:
        largest_label: The largest class of all rows.
    """

    def __init__(
        self, tokenizer: Any, table: Any, text_columns: Sequence[str], classes: np.ndarray
    ) -> None:
        self._tokenizer, self._table, self._columns = tokenizer, table, list(text_columns)
        self._classes = classes
        self.largest_label = int(classes.max())

    def __len__(self) -> int:
        return len(self._classes)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        number = range(len(self))[index]
        row = self._table[number]
        texts = [row[column] for column in self._columns]
        return self._tokenizer.encode_text(*texts) | {"labels": [int(self._classes[number])]}
