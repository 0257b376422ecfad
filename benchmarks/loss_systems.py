"""The loss stages under comparison: from hidden states to a total that can run backward.

Shapes: N tokens, D width, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import kd_losses
from kd_losses import KDLoss

NUM_CHUNKS = 8  # torchtune's default


class Inputs(NamedTuple):
    """Hidden states ``[N, D]``, heads ``[V, D]``, labels ``[N]``; the first requires a gradient."""

    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    labels: Tensor


class System(NamedTuple):
    """One implementation of cross-entropy plus a divergence, both averaged over the labels."""

    total: Callable[[Inputs], Tensor]
    divergence: Callable[[Inputs], Tensor] | None  # None: its value is defined differently


def ours(loss: KDLoss, chunk_size: int | None = None) -> System:
    linear = kd_losses.LinearKDLoss(loss, 1.0, 1.0, chunk_size)

    def total(inputs: Inputs) -> Tensor:
        linear.ce_weight = linear.kd_weight = 1 / _num_labels(inputs)
        return linear(*inputs).total

    return System(total, lambda inputs: linear(*inputs).kd / _num_labels(inputs))


def torchtune(loss: KDLoss) -> System:
    """As its recipe does: both models return their logits in chunks."""
    from torchtune.modules import loss as losses

    ce_loss = losses.CEWithChunkedOutputLoss(NUM_CHUNKS)
    kd_loss = {
        "ForwardKLLoss": losses.ForwardKLWithChunkedOutputLoss,
        "ReverseKLLoss": losses.ReverseKLWithChunkedOutputLoss,
        "SymmetricKLLoss": losses.SymmetricKLWithChunkedOutputLoss,
    }[type(loss).__name__](NUM_CHUNKS)

    def project(hidden: Tensor, head: Tensor) -> list[Tensor]:
        return [F.linear(chunk, head) for chunk in hidden.unsqueeze(0).chunk(NUM_CHUNKS, dim=1)]

    def parts(inputs: Inputs) -> tuple[Tensor, Tensor]:
        student = project(inputs.student_hidden, inputs.student_head)
        with torch.no_grad():
            teacher = project(inputs.teacher_hidden, inputs.teacher_head)
        labels = inputs.labels.unsqueeze(0)
        return ce_loss(student, labels), kd_loss(student, teacher, labels)

    # Its forward KL leaves out the teacher's entropy: another value, the same gradient.
    is_divergence = not isinstance(loss, kd_losses.ForwardKLLoss)
    return System(
        lambda inputs: sum(parts(inputs), start=torch.zeros(())),
        (lambda inputs: parts(inputs)[1]) if is_divergence else None,
    )


def trl(loss: KDLoss) -> System:
    from trl.experimental.gkd import GKDTrainer

    beta = _generalized_jsd_beta(loss)

    def parts(inputs: Inputs) -> tuple[Tensor, Tensor]:
        student = F.linear(inputs.student_hidden, inputs.student_head)
        with torch.no_grad():
            teacher = F.linear(inputs.teacher_hidden, inputs.teacher_head)
        jsd = GKDTrainer.generalized_jsd_loss(
            student[None], teacher[None], inputs.labels[None], beta
        )
        return F.cross_entropy(student.float(), inputs.labels), jsd

    return System(
        lambda inputs: sum(parts(inputs), start=torch.zeros(())), lambda inputs: parts(inputs)[1]
    )


def liger(loss: KDLoss) -> System:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    def fused(hard: float) -> Callable[[Inputs], Tensor]:
        module = LigerFusedLinearJSDLoss(
            weight_hard_loss=hard, weight_soft_loss=1.0, beta=_generalized_jsd_beta(loss)
        )
        return lambda inputs: module(*inputs, None, None)

    return System(fused(1.0), fused(0.0))


SYSTEMS = {"ours": ours, "torchtune": torchtune, "TRL": trl, "Liger": liger}


def _num_labels(inputs: Inputs) -> int:
    return int((inputs.labels != -100).sum())


def _generalized_jsd_beta(loss: KDLoss) -> float:
    """TRL and Liger have one family: beta 0 is the forward KL, 1 the reverse, 0.5 the JSD."""
    if isinstance(loss, kd_losses.JSDistanceLoss):
        assert loss.lambda_weight == 0.5
        return 0.5
    return {"ForwardKLLoss": 0.0, "ReverseKLLoss": 1.0}[type(loss).__name__]
