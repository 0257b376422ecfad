"""The arithmetic of a tile as a few kernels: the same functions, compiled, on devices that gain.

Run one by one, cross-entropy and a divergence pass over the logits some twenty times; compiled by
inductor they read them three times and write the gradient once, in the type that the next product
wants. One code serves all divergences that have a closed form of their slope.

Shape suffixes: R rows of the tile, V vocabulary.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kd_losses.divergences.distribution import DistributionLoss
from kd_losses.functional import at_target

_log = logging.getLogger(__name__)

# On a CPU a tile stays in the cache, and there is nothing to gain; tests add it.
DEVICES = {"cuda"}
_failed: set[type] = set()


class SharedResult(NamedTuple):
    """Sums of cross-entropy and divergence, and the weighted gradient ``[R, V]``."""

    nll: Tensor
    value: Tensor
    grad: Tensor


def shared_softmax(
    loss: DistributionLoss,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    weights: tuple[float, float],
    dtype: torch.dtype,
) -> SharedResult | None:
    """Cross-entropy and a divergence of the same log-softmaxes; nothing is overwritten.

    Args:
        loss: The divergence.
        student: ``[R, V]``, fp32 logits.
        teacher: ``[R, V]``, likewise.
        labels: ``[R]``.
        weights: Of cross-entropy and divergence.
        dtype: Of the gradient.

    Returns:
        None where nothing is to be gained, or the compiler cannot do it, which is said once.
    """
    if student.device.type not in DEVICES or type(loss) in _failed or not _has_slope(loss):
        return None
    factors = [student.new_full((), weight) for weight in weights]
    for logits in (student, teacher):
        torch._dynamo.maybe_mark_dynamic(logits, 0)
    torch._dynamo.maybe_mark_dynamic(labels, 0)
    try:
        return SharedResult(*_compiled()(loss, student, teacher, labels, *factors, dtype))
    except Exception as err:  # a compiler may lack anything, and raise as it likes
        _failed.add(type(loss))
        why = " ".join(str(err).split())[:200]
        _log.warning("%s runs uncompiled, some times slower: %s", type(loss).__name__, why)
        return None


def _has_slope(loss: DistributionLoss) -> bool:
    return type(loss).divergence_and_slope is not DistributionLoss.divergence_and_slope


def _arithmetic(
    loss: DistributionLoss,
    student_RV: Tensor,
    teacher_RV: Tensor,
    labels: Tensor,
    label_weight: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    log_p, log_q = teacher_RV.log_softmax(-1), student_RV.log_softmax(-1)
    nll = -at_target(log_q, labels).sum()
    value, slope = loss.divergence_and_slope(log_p, log_q, weight)
    # The gradient of the cross-entropy is q but for −1 at the label; compared, not scattered.
    here = torch.arange(slope.shape[-1], device=slope.device) == labels.unsqueeze(-1)
    through = slope.sum(-1, keepdim=True) - label_weight
    grad = slope - log_q.exp() * through - torch.where(here, label_weight, 0.0)
    return nll, value.sum(), grad.to(dtype)


_cache: list[Callable[..., tuple[Tensor, Tensor, Tensor]]] = []


def _compiled() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    if not _cache:
        _cache.append(torch.compile(_arithmetic))
    return _cache[0]
