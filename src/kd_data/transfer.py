"""Micro-batches from the host to the device, one at a time."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on the device. A GPU fetches it from pinned memory, and nobody waits for that."""
    if device.type == "cuda":
        return {k: v.pin_memory().to(device, non_blocking=True) for k, v in batch.items()}
    return {k: v.to(device) for k, v in batch.items()}


def one_at_a_time(
    batches: Iterable[dict[str, Tensor]], device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Each batch on the device, while the next one is on its way; the others stay on the host."""
    ahead = None
    for batch in batches:
        current, ahead = ahead, to_device(batch, device)
        if current is not None:
            yield current
    if ahead is not None:
        yield ahead
