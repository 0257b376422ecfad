"""Mixtures of the two distributions."""

import torch
from torch import Tensor


def log_mixture(weight: float, a: Tensor, b: Tensor) -> Tensor:
    """Return ``log((1 − weight)·a + weight·b)`` of probabilities.

    Where both underflow, the floor keeps the logarithm finite: it is only ever multiplied by one of
    the two, which is 0 there.
    """
    return torch.lerp(a, b, weight).clamp_(min=torch.finfo(a.dtype).tiny).log_()
