"""Knowledge distillation at a temperature of every token's own."""

from torch import Tensor

from kd_losses.divergences.forward_kl import kl, kl_and_slope
from kd_losses.divergences.normalized import NormalizedLoss
from kd_losses.functional import log_softmax_backward_


class NormKDLoss(NormalizedLoss):
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
        super().__init__(t_norm, ignore_index)

    def divergence(self, student_NV: Tensor, teacher_NV: Tensor, labels: Tensor) -> Tensor:
        """Return KL(p‖q) of every token."""
        return kl(teacher_NV.log_softmax(-1), student_NV.log_softmax(-1))

    def divergence_and_grad(
        self, student_NV: Tensor, teacher_NV: Tensor, labels: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return KL(p‖q) and its weighted gradient, q − p."""
        log_p, log_q = teacher_NV.log_softmax(-1), student_NV.log_softmax(-1)
        loss, slope = kl_and_slope(log_p, log_q, weight)
        return loss, log_softmax_backward_(slope, log_q, out=teacher_NV)
