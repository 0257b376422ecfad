"""Splitting a distribution into one target token and all others.

Shape suffixes: N tokens, V vocabulary.
"""

import torch
from torch import Tensor

from kd_losses.vocabulary import EXCLUDED


def without_target(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Return the logits with every token's target taken out of the vocabulary."""
    return logits_NV.scatter(-1, target_N.unsqueeze(-1), EXCLUDED)


def decouple(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (target, rest) ``[N, 2]`` and those of the others ``[N, V]``."""
    others = without_target(logits_NV, target_N)
    return _decoupled(at_target(logits_NV, target_N), others.amax(-1), others.log_softmax(-1))


def decouple_(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as `decouple`; overwrites the logits."""
    at = at_target(logits_NV, target_N)
    others = logits_NV.scatter_(-1, target_N.unsqueeze(-1), EXCLUDED)
    top = others.amax(-1)
    return _decoupled(at, top, others.log_softmax(-1))


def _decoupled(at: Tensor, top: Tensor, log_others_NV: Tensor) -> tuple[Tensor, Tensor]:
    # What log-softmax took off is the others' logsumexp, which would cost as much once more.
    logsumexp = top - log_others_NV.amax(-1)
    return torch.stack([at, logsumexp], dim=-1).log_softmax(-1), log_others_NV


def at_target(x_NV: Tensor, target_N: Tensor) -> Tensor:
    """Return every token's entry ``[N]`` at its target."""
    return x_NV.gather(-1, target_N.unsqueeze(-1)).squeeze(-1)
