"""Data and a loss that treat ranks unlike: other lengths, no labels, failures on one rank."""

import os
import signal
from typing import Any

import tiny
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torchtune.utils import get_world_size_and_rank

from layer_mapping import CosineLoss

IGNORE = -100


class UnevenSamples(Dataset):
    """The tests' sentences; the first third of a sample's tokens has no label.

    Args:
        tokenizer: Given by the run.
        size: Number of samples.
        odd_silent: No odd sample has a label: without shuffling, odd ranks then see none.
        fails_at: Reading this sample raises on rank 1.
        waits_at: Reading this sample never ends on rank 0, unless the launcher ends the process.
    """

    def __init__(
        self,
        tokenizer: Any,
        size: int,
        odd_silent: bool = False,
        fails_at: int | None = None,
        waits_at: int | None = None,
    ) -> None:
        self._tokenizer, self._size, self._odd_silent = tokenizer, size, odd_silent
        _, rank = get_world_size_and_rank()
        self._fails_at = fails_at if rank == 1 else None
        self._waits_at = waits_at if rank == 0 else None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self._fails_at:
            raise ValueError(f"sample {index} is broken")
        if index == self._waits_at:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a run would finish its step first
            while True:
                signal.pause()
        text = tiny.SENTENCES[index % 8] + tiny.SENTENCES[index * 3 % 7][: index % 13]
        tokens = self._tokenizer.encode(text, add_bos=False, add_eos=True)
        labels = torch.tensor(tokens)
        labels[: len(tokens) // 3] = IGNORE
        if self._odd_silent and index % 2:
            labels[:] = IGNORE
        return {"tokens": tokens, "labels": labels.tolist()}


class DeadlySamples(UnevenSamples):
    """Reading one ends the process that does, as want of memory would; never the run's own."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class SpoiltCosineLoss(CosineLoss):
    """Gives NaN on the last rank, the first time that a gradient is wanted."""

    def __init__(self) -> None:
        super().__init__()
        world_size, rank = get_world_size_and_rank()
        self._spoils = rank == world_size - 1

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        distance = super().distance(student, teacher)
        if self._spoils and distance.requires_grad:
            self._spoils = False
            return distance * torch.nan
        return distance
