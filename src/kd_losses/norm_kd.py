"""Knowledge distillation at a temperature of every token's own."""

import torch
from torch import Tensor

from kd_losses.base import KDLoss
from kd_losses.checks import require
from kd_losses.forward_kl import kl
from kd_losses.normalized import token_temperature


class NormKDLoss(KDLoss):
    """``τ_p²·KL(p‖q)``, p and q softmaxes of logits / τ, ``τ = t_norm · std(logits)``.

    Each side's τ comes from its own logits, token by token; the student's carries gradient.

    Args:
        t_norm: temperature in standard deviations.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if ``t_norm`` is not above 0.

    Source: NormKD, https://arxiv.org/abs/2308.00520, as evaluated in BiLD,
        https://aclanthology.org/2025.coling-main.78.
    """

    def __init__(self, t_norm: float = 1.5, ignore_index: int = -100) -> None:
        super().__init__(ignore_index=ignore_index)
        require(t_norm > 0, "t_norm", t_norm, "above 0")
        self.t_norm = t_norm

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every token."""
        teacher_t = token_temperature(teacher_logits, self.t_norm)
        student_t = token_temperature(student_logits, self.t_norm)
        log_p = torch.log_softmax(teacher_logits / teacher_t, dim=-1)
        log_q = torch.log_softmax(student_logits / student_t, dim=-1)
        return teacher_t.squeeze(-1).square() * kl(log_p, log_q)
