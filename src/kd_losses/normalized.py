"""Logits on the scale of their own standard deviation.

Shape suffixes: N tokens, V vocabulary.
"""

import torch
from torch import Tensor

from kd_losses.vocabulary import EXCLUDED


def token_temperature(logits_NV: Tensor, t_norm: float) -> Tensor:
    """Return ``t_norm · std(logits)`` of every token ``[N, 1]``, over the ids not excluded.

    Two passes written out: `torch.std` takes one, but on a CPU it is many times slower.
    """
    inside = logits_NV > EXCLUDED / 2
    count = inside.sum(-1, keepdim=True)
    mean = logits_NV.where(inside, 0).sum(-1, keepdim=True) / count
    centred = (logits_NV - mean).where(inside, 0)
    variance = torch.linalg.vecdot(centred, centred).unsqueeze(-1) / (count - 1)
    # Equal logits have no scale; any finite one leaves their softmax uniform.
    return t_norm * variance.clamp(min=torch.finfo(variance.dtype).eps).sqrt()
