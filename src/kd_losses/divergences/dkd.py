"""Decoupled knowledge distillation."""

from torch import Tensor

from kd_losses.divergences.forward_kl import kl
from kd_losses.divergences.normalized import NormalizedLoss
from kd_losses.functional import decouple, decouple_, require, topk_indices


class DKDLoss(NormalizedLoss):
    """``τ_p²·(α·KL(b_p‖b_q) + β·KL(p̂‖q̂))`` on logits / τ, ``τ = t_norm · std(logits)``.

    b is the pair (probability of the target, probability of all others); p̂ and q̂ are teacher and
    student renormalised over the others. The target is the label, or the teacher's most probable
    token where there is none. The student's τ carries gradient.

    Args:
        alpha: α, weight of the target part.
        beta: β, weight of the non-target part.
        t_norm: temperature in standard deviations of each side's logits.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if α or β is negative or ``t_norm`` not above 0.

    Source: DKD, https://arxiv.org/abs/2203.08679, normalised as in BiLD,
        https://aclanthology.org/2025.coling-main.78.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        t_norm: float = 2.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(t_norm, ignore_index)
        require(alpha >= 0, "alpha", alpha, "at least 0")
        require(beta >= 0, "beta", beta, "at least 0")
        self.alpha = alpha
        self.beta = beta

    def divergence(self, student_NV: Tensor, teacher_NV: Tensor, labels: Tensor) -> Tensor:
        """Return ``α·KL(b_p‖b_q) + β·KL(p̂‖q̂)`` of every token."""
        target = self._target(teacher_NV, labels)
        log_pair_p, log_others_p = decouple(teacher_NV, target)
        log_pair_q, log_others_q = decouple(student_NV, target)
        return self._sum(kl(log_pair_p, log_pair_q), kl(log_others_p, log_others_q))

    def divergence_and_grad(
        self, student_NV: Tensor, teacher_NV: Tensor, labels: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the same and its weighted gradient.

        With b the probability of the target: α·(b_q − b_p) at the target, and
        ``(β − α·(b_q − b_p))·q̂ − β·p̂`` at the others.
        """
        target = self._target(teacher_NV, labels)
        log_pair_p, log_others_p = decouple_(teacher_NV, target)
        log_pair_q, log_others_q = decouple(student_NV, target)
        p = log_others_p.exp()
        others = log_others_p.sub_(log_others_q).mul_(p).sum(-1)
        loss = self._sum(kl(log_pair_p, log_pair_q), others)
        target_grad = self.alpha * weight * (log_pair_q.exp() - log_pair_p.exp())[:, :1]
        grad = log_others_q.exp_().mul_(self.beta * weight - target_grad)
        grad.addcmul_(p, -self.beta * weight)
        return loss, grad.scatter_(-1, target.unsqueeze(-1), target_grad)

    def _target(self, teacher_NV: Tensor, labels: Tensor) -> Tensor:
        missing = labels == self.ignore_index
        if not missing.any():
            return labels
        return topk_indices(teacher_NV, 1).squeeze(-1).where(missing, labels)

    def _sum(self, target: Tensor, others: Tensor) -> Tensor:
        return self.alpha * target + self.beta * others
