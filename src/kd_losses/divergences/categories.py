"""The categories between which the student's probability is divided, and the way back to logits.

Shape suffixes: R rows, V vocabulary, K ids kept.
"""

from typing import Protocol

import torch
from torch import Tensor

from kd_losses.functional import EXCLUDED, add_at_, at_target, log_softmax_backward_


class Categories(Protocol):
    """The student's distribution over what the teacher tells apart.

    Attributes:
        log_q: log-probabilities of the categories, ``[R, V]`` or ``[R, K + 1]``.
    """

    log_q: Tensor

    def nll(self, labels: Tensor) -> Tensor:
        """Return ``−log q_y`` of every row ``[R]``, y its label."""

    def backward_(self, slope: Tensor, labels: Tensor | None = None, weight: float = 0.0) -> Tensor:
        """Return the gradient ``[R, V]`` w.r.t. the logits, in their memory; the last call.

        Args:
            slope: that w.r.t. `log_q`, each of them taken as free.
            labels: adds ``weight`` times the gradient of `nll`.
            weight: its factor.
        """


class EachId:
    """Every id is a category. The logits are overwritten by `backward_`."""

    def __init__(self, logits_RV: Tensor) -> None:
        self._logits_RV = logits_RV
        self.log_q = logits_RV.log_softmax(-1)

    def nll(self, labels: Tensor) -> Tensor:
        """Return ``−log q_y``."""
        return -at_target(self.log_q, labels)

    def backward_(self, slope: Tensor, labels: Tensor | None = None, weight: float = 0.0) -> Tensor:
        """Return ``slope − q·Σ slope``, the cross-entropy being a slope of ``−weight`` at y."""
        if labels is not None:
            add_at_(slope, labels, -weight)
        return log_softmax_backward_(slope, self.log_q, out=self._logits_RV)


class KeptIds:
    """The ids that were kept are categories, and all others together are the last one.

    With r the softmax over the others alone, q_j = r_j·q_B for each of them. So the gradient of a
    slope s is ``r_j·(s_B − q_B·Σ s)`` there and ``s_i − q_i·Σ s`` at what was kept: one softmax and
    one product over the vocabulary, whatever the divergence. The cross-entropy adds ``w·q`` and
    ``−w`` at the label. Overwrites the logits.
    """

    def __init__(self, logits_RV: Tensor, ids_RK: Tensor) -> None:
        self._ids_RK = ids_RK
        kept_RK = logits_RV.gather(-1, ids_RK)
        self._others_RV = logits_RV.scatter_(-1, ids_RK, EXCLUDED)
        self._r_RV = torch.softmax(self._others_RV, dim=-1)
        # The largest logit and the largest probability, at least 1/V, give the logsumexp without
        # another exponential.
        top = self._others_RV.amax(-1, keepdim=True)
        self._logsumexp = top - self._r_RV.amax(-1, keepdim=True).log()
        self.log_q = torch.cat([kept_RK, self._logsumexp], dim=-1).log_softmax(-1)

    def nll(self, labels: Tensor) -> Tensor:
        """Return ``−log q_y``."""
        of_label = self._ids_RK == labels.unsqueeze(-1)
        log_q_RK, log_q_B = self.log_q[:, :-1], self.log_q[:, -1:]
        kept = log_q_RK.where(of_label, 0).sum(-1)
        other = at_target(self._others_RV, labels) + (log_q_B - self._logsumexp).squeeze(-1)
        return -kept.where(of_label.any(-1), other)

    def backward_(self, slope: Tensor, labels: Tensor | None = None, weight: float = 0.0) -> Tensor:
        """Return the gradient of the closed form."""
        total = slope.sum(-1, keepdim=True)
        if labels is not None:
            total -= weight
        grad = torch.addcmul(slope, self.log_q.exp(), total, value=-1)
        grad_RV = torch.mul(self._r_RV, grad[:, -1:], out=self._others_RV)
        grad_RV.scatter_(-1, self._ids_RK, grad[:, :-1])
        return grad_RV if labels is None else add_at_(grad_RV, labels, -weight)


def kept_log_probs(logits_RV: Tensor, ids_RK: Tensor) -> Tensor:
    """Return the log-probabilities of `KeptIds` ``[R, K + 1]``; autograd may differentiate it."""
    others = logits_RV.scatter(-1, ids_RK, EXCLUDED).logsumexp(-1, keepdim=True)
    return torch.cat([logits_RV.gather(-1, ids_RK), others], dim=-1).log_softmax(-1)
