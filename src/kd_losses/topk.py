"""The largest k logits of every token, without sorting the vocabulary.

Shape suffixes: N tokens, V vocabulary, K entries kept.
"""

import math

import torch
from torch import Tensor

# Maxima of rows that start at a vector register's boundary take half the time.
_ALIGNED = 16
_MAX_GROUP = 128


def topk_indices(logits_NV: Tensor, k: int, ordered: bool = True) -> Tensor:
    """Return the ids ``[N, K]`` of the ``min(k, V)`` largest logits, ``ordered`` the largest first.

    The top k lie in the k groups with the largest maxima, and group maxima cost one cheap pass:
    selecting among V/g maxima and then among k·g members is several times faster than among V.
    """
    vocab_size = logits_NV.shape[-1]
    k = min(k, vocab_size)
    group = min(math.isqrt(vocab_size // k), _MAX_GROUP)
    num_groups = vocab_size // group // _ALIGNED * _ALIGNED
    if group < 2 or num_groups < k:
        return logits_NV.topk(k, sorted=ordered).indices
    grouped = logits_NV[:, : num_groups * group].unflatten(-1, (group, num_groups))
    groups_NK = grouped.amax(1).topk(k, sorted=False).indices
    offsets = torch.arange(0, num_groups * group, num_groups, device=logits_NV.device)
    members = (groups_NK.unsqueeze(-1) + offsets).flatten(1)
    rest = torch.arange(num_groups * group, vocab_size, device=logits_NV.device)
    candidates = torch.cat([members, rest.expand(len(members), -1)], dim=-1)
    chosen = logits_NV.gather(-1, candidates).topk(k, sorted=ordered).indices
    return candidates.gather(-1, chosen)
