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
    order, cumulative = _cumulative(logits.double() / sampling.temperature, sampling)
    # The last token of the support has all of the rest: rounding must not lead beyond it.
    target = drawn.to(logits.device)[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True).clamp(max=order.shape[1] - 1)
    return order.gather(-1, place).squeeze(-1).tolist()


def _cumulative(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The tokens that may be chosen, the most probable first, and their summed probabilities.

    A token that may not has a probability of 0, and the sum stays as it is.
    """
    probs, order = torch.sort(logits.softmax(-1), dim=-1, descending=True, stable=True)
    if sampling.top_k:
        probs[:, sampling.top_k :] = 0
        probs /= probs.sum(-1, keepdim=True)
    if sampling.top_p < 1:
        before = probs.cumsum(-1) - probs
        probs = probs.masked_fill(before >= sampling.top_p, 0)
    return order, probs.cumsum(-1)
