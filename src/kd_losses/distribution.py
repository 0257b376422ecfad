"""Divergences that depend on the two probability distributions alone.

Shape suffixes: N tokens, V vocabulary.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from kd_losses.base import KDLoss


class DistributionLoss(KDLoss):
    """A divergence D(p, q) of teacher p and student q, both softmaxes of logits / temperature.

    A subclass defines `divergence`. It may override `divergence_and_slope` where a closed form
    takes fewer passes over the vocabulary than autograd.
    """

    @abstractmethod
    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Return D(p, q) of every token ``[N]`` from fp32 log-probabilities ``[N, V]``."""

    def divergence_and_slope(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return `divergence` and its slope ∂D/∂log q ``[N, V]``, each log q a free variable.

        A multiple of q may be added to the slope: the softmax's backward cancels it. ``log_p``
        belongs to the callee, which may overwrite it; ``log_q`` must stay as it is.
        """
        with torch.enable_grad():
            leaf = log_q.detach().requires_grad_()
            loss = self.divergence(log_p, leaf)
            (slope,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), slope

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every token ``[N]`` from the logits."""
        log_p = torch.log_softmax(teacher_logits / self.temperature, dim=-1)
        log_q = torch.log_softmax(student_logits / self.temperature, dim=-1)
        return self.divergence(log_p, log_q)

    def per_token_and_grad(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return `per_token` and its gradient ``[N, V]``; both logits are overwritten."""
        log_p = log_softmax_(teacher_logits, self.temperature)
        log_q = log_softmax_(student_logits, self.temperature)
        loss, slope = self.divergence_and_slope(log_p, log_q)
        return loss, log_softmax_backward(slope, log_q).div_(self.temperature)


def log_softmax_(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Overwrite logits with their log-probabilities."""
    if temperature != 1:
        logits.div_(temperature)
    return torch.log_softmax(logits, dim=-1, out=logits)


def log_softmax_backward(slope: Tensor, log_q: Tensor) -> Tensor:
    """Return the gradient w.r.t. the logits, ``slope − q·Σ slope``, in one fused pass."""
    return torch.ops.aten._log_softmax_backward_data(slope, log_q, -1, slope.dtype)
