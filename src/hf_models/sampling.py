"""The choice of the next token.

Shapes: B rows, V vocabulary.
"""

import torch
from torch import Tensor

from hf_models.model import Sampling


def choose(logits: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> list[int]:
    """A token for each row.

    Each row draws one number of its own generator, on the CPU: its choice depends neither on the
    other rows nor on the device.

    Args:
        logits: [B, V].
        sampling: Temperature 0 takes the largest logit.
        generators: One for each row.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    drawn = torch.cat([torch.rand(1, generator=one, dtype=torch.float64) for one in generators])
    ids, probs = _support((logits.double() / sampling.temperature).softmax(-1), sampling)
    cumulative = probs.cumsum(-1)
    # The last token of the support has all of the rest: rounding must not lead beyond it.
    target = drawn.to(logits.device)[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True).clamp(max=probs.shape[1] - 1)
    if ids is not None:
        place = ids.gather(-1, place)
    return place.squeeze(-1).tolist()


def _support(probs: Tensor, sampling: Sampling) -> tuple[Tensor | None, Tensor]:
    """The ids that may be chosen, None for all in their order, and their probabilities.

    A token that may not has a probability of 0, which leaves the sum as it is. Only where the
    probable ones are asked for are they sorted, which takes longer than all the rest.
    """
    if sampling.top_k:
        probs, ids = probs.topk(min(sampling.top_k, probs.shape[-1]), dim=-1)
        probs = probs / probs.sum(-1, keepdim=True)
    elif sampling.top_p < 1:
        probs, ids = probs.sort(dim=-1, descending=True, stable=True)
    else:
        return None, probs
    if sampling.top_p < 1:
        before = probs.cumsum(-1) - probs
        probs = probs.masked_fill(before >= sampling.top_p, 0)
    return ids, probs
