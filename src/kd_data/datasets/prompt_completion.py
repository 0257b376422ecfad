"""Prompts and completions from local files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch.utils.data import Dataset
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX
from torchtune.datasets import PackedDataset
from torchtune.modules.transforms.tokenizers import ModelTokenizer

from kd_data.datasets.tables import read_texts
from kd_data.packing import pack


def prompt_completion_dataset(
    tokenizer: ModelTokenizer,
    data_files: str | Path | Sequence[str | Path],
    prompt_column: str = "prompt",
    completion_column: str | None = "completion",
    train_on_prompt: bool = False,
    split: str = "train",
    packed: bool = False,
) -> "PromptCompletionDataset | PackedDataset":
    """Prompt and completion joined as they stand, without a chat template, as lm_eval scores them.

    A space between the two belongs to the data, best at the beginning of the completion.

    Args:
        tokenizer: torchtune tokenizer.
        data_files: One or more local files of one format, which their ending says: CSV, TSV, JSON,
            JSON Lines or Parquet. See ``read_texts``.
        prompt_column: Column of the prompt.
        completion_column: Column of the completion; None: the student is to write it.
        train_on_prompt: Whether the prompt's tokens are labels too.
        split: ``train``, or a part of it such as ``train[:10%]``.
        packed: Several samples to a row of ``tokenizer.max_seq_len`` tokens.

    Returns:
        Dataset of ``{"tokens": [...], "labels": [...]}``, labels unshifted.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read, a column is missing or not text, there are no rows, or
            ``packed`` lacks a ``max_seq_len``.
    """
    files = [data_files] if isinstance(data_files, str | Path) else list(data_files)
    columns = [column for column in (prompt_column, completion_column) if column is not None]
    table = read_texts(files, split, columns)
    dataset = PromptCompletionDataset(
        tokenizer, table, prompt_column, completion_column, train_on_prompt
    )
    return pack(dataset, tokenizer) if packed else dataset


class Table(Protocol):
    """What has numbered rows of named texts: a table, or something that makes them on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, str]: ...


class PromptCompletionDataset(Dataset):
    """Rows of a table, tokenised one at a time. See ``prompt_completion_dataset``."""

    def __init__(
        self,
        tokenizer: ModelTokenizer,
        table: Table,
        prompt_column: str,
        completion_column: str | None,
        train_on_prompt: bool,
        add_eos: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._table = table
        self._columns = (prompt_column, completion_column)
        self._train_on_prompt = train_on_prompt
        self._add_eos = add_eos and completion_column is not None

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self._table[index]
        prompt, completion = (row[column] if column else "" for column in self._columns)
        # One pass over the whole text, so that the boundary is tokenised as in running text. A
        # space at the prompt's end is part of the completion's first token.
        tokens = self._tokenizer.encode(prompt + completion, add_bos=True, add_eos=self._add_eos)
        prompt_tokens = self._tokenizer.encode(prompt.rstrip(), add_bos=True, add_eos=False)
        labels = list(tokens)
        if not self._train_on_prompt:
            labels[: len(prompt_tokens)] = [CROSS_ENTROPY_IGNORE_IDX] * len(prompt_tokens)
        # Too long: the prompt's beginning goes, as in lm_eval, because the labels are at the end.
        keep = -(self._tokenizer.max_seq_len or 0)
        return {"tokens": tokens[keep:], "labels": labels[keep:]}
