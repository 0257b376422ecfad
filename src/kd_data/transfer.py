"""Micro-batches on their way: made ahead of time, and from the host to the device one at a time."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from kd_data.batch import Batch

T = TypeVar("T")
_END = object()


def one_at_a_time(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Each batch on the device, while the next one is on its way; the others stay on the host."""
    ahead = None
    for batch in batches:
        current, ahead = ahead, batch.to(device)
        if current is not None:
            yield current
    if ahead is not None:
        yield ahead


def made_ahead(items: Iterator[T]) -> Iterator[T]:
    """Each item, while a thread makes the next one; an error comes where its item would.

    That is for a GPU, beside which the host has nothing to do. On a CPU a thread would take from
    the step what it saves.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, items, _END)
            yield item  # type: ignore[misc]
