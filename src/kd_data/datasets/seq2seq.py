"""Sources and targets of encoder-decoders."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch.utils.data import Dataset

from kd_data.datasets.sources import cell, load_table, name_of, require_tokenizer


def seq2seq_dataset(
    tokenizer: Any,
    source: str,
    source_column: str,
    target_column: str,
    prefix: str = "",
    split: str = "train",
    data_files: str | Sequence[str] | None = None,
    max_target_len: int | None = None,
    max_samples: int | None = None,
    skip_empty: bool = False,
    **load_dataset_kwargs: Any,
) -> "Seq2SeqDataset":
    """Texts to read and texts to write, from local files or the Hub.

    ::

        {_component_: kd_data.seq2seq_dataset, source: wmt16, name: ro-en, split: train,
         source_column: translation.en, target_column: translation.ro,
         prefix: "translate English to Romanian: "}

    Args:
        tokenizer: That of a Hugging Face directory, `hf_models.tokenizer`.
        source: ``json``, ``csv`` or ``parquet`` with ``data_files``, or a name on the Hub.
        source_column: Column of what is read; a nested one with dots. Triples, as DART has them,
            become ``subject : relation : object | ...``.
        target_column: Column of what is written; of several texts the first is taken.
        prefix: Put before every source, as T5's tasks are called.
        split: Such as ``train``.
        data_files: One or several local files.
        max_target_len: Longest target in tokens; None: the tokenizer's ``max_seq_len``.
        max_samples: Only so many rows, the first ones.
        skip_empty: Leave rows with an empty text out, which are an error otherwise.
        **load_dataset_kwargs: Further arguments of ``datasets.load_dataset``, such as ``name``.

    Returns:
        Dataset of ``{"tokens": source, "labels": target}``, both with the tokenizer's markers.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the source cannot be read, lacks a column or a text, or the tokenizer is not
            such a one.
    """
    require_tokenizer(tokenizer)
    columns = (source_column, target_column)
    table = load_table(
        source, split, data_files, columns, max_samples, skip_empty, **load_dataset_kwargs
    )
    rows = _TablePairs(table, columns, prefix, name_of(source, data_files))
    return Seq2SeqDataset(tokenizer, rows, max_target_len)


class TextPairs(Protocol):
    """Numbered pairs of a source and a target."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[str, str]: ...


class Seq2SeqDataset(Dataset):
    """Pairs of texts, tokenised one at a time. See `seq2seq_dataset`.

    Args:
        tokenizer: That of a Hugging Face directory.
        rows: The pairs.
        max_target_len: Longest target in tokens.
    """

    def __init__(self, tokenizer: Any, rows: TextPairs, max_target_len: int | None = None) -> None:
        self._tokenizer, self._rows, self._max_target_len = tokenizer, rows, max_target_len

    def __len__(self) -> int:
        return len(self._rows)

    def texts(self, index: int) -> tuple[str, str]:
        """A row's source and target."""
        return self._rows[range(len(self))[index]]

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        source, target = self.texts(index)
        labels = self._tokenizer.encode_target(target, self._max_target_len)
        return {"tokens": self._tokenizer.encode_text(source)["tokens"], "labels": labels}


class _TablePairs:
    """Rows of a table as texts. The first row is looked at, for what columns cannot be read as."""

    def __init__(self, table: Any, columns: tuple[str, str], prefix: str, where: str) -> None:
        self._table, self._columns = table, columns
        self._prefix, self._where = prefix, where
        self[0]

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> tuple[str, str]:
        row = self._table[index]
        try:
            source, target = (_as_text(cell(row, column), column) for column in self._columns)
        except ValueError as err:
            raise ValueError(f"{self._where}: row {index + 1}: {err}") from err
        return self._prefix + source, target


def _as_text(value: Any, column: str) -> str:
    if isinstance(value, list) and value:
        if isinstance(value[0], list):
            return " | ".join(" : ".join(map(str, triple)) for triple in value)
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column} is {value!r}; it must be a text that is not empty")
    return value
