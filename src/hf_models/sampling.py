"""The choice of the next token.

Shapes: B rows, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from hf_models.model import Sampling


def seeded(seeds: list[int], device: torch.device) -> list[torch.Generator]:
    """A generator of each row's own, where its logits will be."""
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def choose(logits: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> list[int]:
    """A token for each row: ``argmax(logits / temperature + g)`` with Gumbel noise g.

    That draws from the softmax (Gumbel, 1954). A row's noise comes from its own generator, a number
    for each token: its choice depends on no other row, and other last digits of its logits change
    it only where two tokens are that close. (The inverse of the cumulative probabilities, which
    takes one number, has as many close decisions as there are tokens.)

    Args:
        logits: [B, V].
        sampling: Temperature 0 takes the largest logit.
        generators: One for each row, where the logits are.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    size = logits.shape[-1]
    kind: Any = {"dtype": torch.float64, "device": logits.device}
    uniform = torch.stack([torch.rand(size, generator=one, **kind) for one in generators])
    noise = uniform.log_().neg_().log_().neg_()
    scores = _supported(logits.double() / sampling.temperature, sampling)
    return (scores + noise).argmax(-1).tolist()


def _supported(scores: Tensor, sampling: Sampling) -> Tensor:
    """The scores [B, V], −inf for tokens that may not be chosen."""
    nothing = torch.full_like(scores, -torch.inf)
    if sampling.top_k:
        best = scores.topk(min(sampling.top_k, scores.shape[-1]), dim=-1)
        scores = nothing.scatter(-1, best.indices, best.values)
    if sampling.top_p < 1:
        ordered, ids = scores.sort(dim=-1, descending=True, stable=True)
        probs = ordered.softmax(-1)
        before = probs.cumsum(-1) - probs
        kept = ordered.masked_fill(before >= sampling.top_p, -torch.inf)
        scores = nothing.scatter(-1, ids, kept)
    return scores
