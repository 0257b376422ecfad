"""Splitting a distribution into one target token and all others.

Shape suffixes: N tokens, V vocabulary.
"""

from torch import Tensor

from kd_losses.vocabulary import EXCLUDED


def without_target(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Return the logits with every token's target taken out of the vocabulary."""
    return logits_NV.scatter(-1, target_N.unsqueeze(-1), EXCLUDED)


def at_target(x_NV: Tensor, target_N: Tensor) -> Tensor:
    """Return every token's entry ``[N]`` at its target."""
    return x_NV.gather(-1, target_N.unsqueeze(-1)).squeeze(-1)
