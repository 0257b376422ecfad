"""Micro-batches from the host to the device, one at a time."""

from collections.abc import Iterable, Iterator

import torch

from kd_data.batch import Batch


def one_at_a_time(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Each batch on the device, while the next one is on its way; the others stay on the host."""
    ahead = None
    for batch in batches:
        current, ahead = ahead, batch.to(device)
        if current is not None:
            yield current
    if ahead is not None:
        yield ahead
