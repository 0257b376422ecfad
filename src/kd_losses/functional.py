"""What divergences share: the ids that both sides have, one target against the rest, the top k.

Shape suffixes: N tokens, V vocabulary, K entries kept.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def require(ok: bool, name: str, value: object, wanted: str) -> None:
    """Raise `ValueError` naming the parameter, what it must be and what it is."""
    if not ok:
        raise ValueError(f"{name} must be {wanted}, got {value}")


def upcast(x: Tensor) -> Tensor:
    """Return ``x`` in the type of the loss arithmetic: float64 stays, everything else is fp32."""
    return x if x.dtype == torch.float64 else x.float()


# Heads of one tokenizer are padded to multiples of at most this, so widths that differ by less
# are two paddings of one vocabulary; widths further apart are two vocabularies.
MAX_PADDING = 1024

# Finite stand-in for -inf: its probability is exactly 0, its products are 0 and not NaN.
EXCLUDED = -1e30


def shared_vocab_size(student_size: int, teacher_size: int) -> int:
    """Return how many ids both heads have.

    Raises:
        ValueError: if the widths are too far apart to be two paddings of one vocabulary.
    """
    if abs(student_size - teacher_size) >= MAX_PADDING:
        raise ValueError(
            f"student vocabulary {student_size} and teacher vocabulary {teacher_size} are not one "
            "vocabulary padded differently: use models that share a tokenizer"
        )
    return min(student_size, teacher_size)


def cut_to_shared(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the padding ids at the end that only one side has."""
    size = shared_vocab_size(student_logits.shape[-1], teacher_logits.shape[-1])
    return student_logits[..., :size], teacher_logits[..., :size]


def exclude(logits: Tensor) -> Tensor:
    """Exclude the ids with a logit of -inf, one side on its own."""
    return logits.masked_fill(torch.isneginf(logits), EXCLUDED)


def drop_excluded(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Exclude from both sides the ids to which either side gives a logit of -inf.

    What one model rules out is not part of the support that the two share, exactly like a padding
    id: both distributions are renormalised over the rest, and every divergence stays finite.
    """
    excluded = torch.isneginf(student_logits) | torch.isneginf(teacher_logits)
    return (
        student_logits.masked_fill(excluded, EXCLUDED),
        teacher_logits.masked_fill(excluded, EXCLUDED),
    )


def log_mixture(weight: float, a: Tensor, b: Tensor) -> Tensor:
    """Return ``log((1 − weight)·a + weight·b)`` of probabilities.

    Where both underflow, the floor keeps the logarithm finite: it is only ever multiplied by one of
    the two, which is 0 there.
    """
    return torch.lerp(a, b, weight).clamp_(min=torch.finfo(a.dtype).tiny).log_()


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


def value_and_grad(
    per_token: Callable[..., Tensor],
    student_logits: Tensor,
    teacher_logits: Any,
    labels: Tensor,
    weight: float,
) -> tuple[Tensor, Tensor]:
    """Return ``per_token`` of the three, and ``weight`` times its gradient by autograd."""
    with torch.enable_grad():
        leaf = student_logits.detach().requires_grad_()
        value = per_token(leaf, teacher_logits, labels)
        (grad,) = torch.autograd.grad(value, leaf, torch.full_like(value, weight))
    # That of a plain sum is one number seen from everywhere, which nobody could add to.
    return value.detach(), grad.contiguous()


def log_softmax_backward_(slope: Tensor, log_q: Tensor, out: Tensor) -> Tensor:
    """Return the gradient w.r.t. the logits, ``slope − q·Σ slope``; overwrites ``log_q``.

    Neither this nor the log-softmax before it writes where it reads: torch says so only of methods
    that end in ``_``. It costs about one percent of the loss stage's time.

    Args:
        slope: ``[N, V]``.
        log_q: ``[N, V]``.
        out: ``[N, V]``, takes the gradient; none of the others.
    """
    return torch.addcmul(slope, log_q.exp_(), slope.sum(-1, keepdim=True), value=-1, out=out)


def add_at_(x_NV: Tensor, target_N: Tensor, value: float) -> Tensor:
    """Add a number to every token's entry at its target, in place."""
    return x_NV.scatter_(-1, target_N.unsqueeze(-1), value, reduce="add")
