"""The loss stages under comparison: from hidden states to a total that can run backward.

Each is made for a divergence and the weight of the cross-entropy beside it, 1 or 0; with 0 it is
left out where the library can leave it out. Shapes: N tokens, D width, V vocabulary.
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
    """One implementation of a divergence and cross-entropy, both averaged over the labels."""

    total: Callable[[Inputs], Tensor]
    divergence: Callable[[Inputs], Tensor] | None  # None: its value is defined differently


def ours(loss: KDLoss, ce: float = 1.0, chunk_size: int | None = None) -> System:
    linear = kd_losses.LinearKDLoss(loss, ce, 1.0, chunk_size)

    def total(inputs: Inputs) -> Tensor:
        linear.kd_weight = 1 / _num_labels(inputs)
        linear.ce_weight = ce * linear.kd_weight
        return linear(*inputs).total

    return System(total, lambda inputs: linear(*inputs).kd / _num_labels(inputs))


def torchtune(loss: KDLoss, ce: float = 1.0) -> System:
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

    def parts(inputs: Inputs) -> list[Tensor]:
        student = project(inputs.student_hidden, inputs.student_head)
        with torch.no_grad():
            teacher = project(inputs.teacher_hidden, inputs.teacher_head)
        labels = inputs.labels.unsqueeze(0)
        kd = kd_loss(student, teacher, labels)
        return [kd, ce_loss(student, labels)] if ce else [kd]

    # Its forward KL leaves out the teacher's entropy: another value, the same gradient.
    is_divergence = not isinstance(loss, kd_losses.ForwardKLLoss)
    return System(
        lambda inputs: sum(parts(inputs), start=torch.zeros(())),
        (lambda inputs: parts(inputs)[0]) if is_divergence else None,
    )


def trl(loss: KDLoss, ce: float = 1.0) -> System:
    """The loss of its GKD trainer, on whole logits."""
    from trl.experimental.gkd import GKDTrainer

    beta = _generalized_jsd_beta(loss)

    def parts(inputs: Inputs) -> list[Tensor]:
        student = F.linear(inputs.student_hidden, inputs.student_head)
        with torch.no_grad():
            teacher = F.linear(inputs.teacher_hidden, inputs.teacher_head)
        jsd = GKDTrainer.generalized_jsd_loss(
            student[None], teacher[None], inputs.labels[None], beta
        )
        return [jsd, F.cross_entropy(student.float(), inputs.labels)] if ce else [jsd]

    return System(
        lambda inputs: sum(parts(inputs), start=torch.zeros(())), lambda inputs: parts(inputs)[0]
    )


def trl_chunked(loss: KDLoss, ce: float = 1.0) -> System:
    """The kernels of its distillation trainer, and those of its SFT trainer for cross-entropy.

    No trainer of its uses both together; each projects the student's hidden states itself.
    """
    from trl.kernels import ChunkedLogProbFunction
    from trl.kernels.chunked_divergence import VOCAB_CHUNK_SIZE, ChunkedDivergenceFunction

    beta = _generalized_jsd_beta(loss)

    def divergence(inputs: Inputs) -> Tensor:
        own = (inputs.student_hidden, inputs.student_head, None)
        teachers = (inputs.teacher_hidden, inputs.teacher_head, None)
        values, _ = ChunkedDivergenceFunction.apply(*own, *teachers, beta)
        return values[inputs.labels != -100].mean()

    def total(inputs: Inputs) -> Tensor:
        if not ce:
            return divergence(inputs)
        labels = inputs.labels.clamp(min=0)
        own = (inputs.student_hidden, inputs.student_head, None, labels)
        log_probs = ChunkedLogProbFunction.apply(*own, 1.0, VOCAB_CHUNK_SIZE, None, 1.0, ())[0]
        return divergence(inputs) - log_probs[inputs.labels != -100].mean()

    return System(total, divergence)


def liger(loss: KDLoss, ce: float = 1.0) -> System:
    """It always computes the gradient of the student's head too."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    def fused(hard: float) -> Callable[[Inputs], Tensor]:
        module = LigerFusedLinearJSDLoss(
            weight_hard_loss=hard, weight_soft_loss=1.0, beta=_generalized_jsd_beta(loss)
        )
        return lambda inputs: module(*inputs, None, None)

    return System(fused(ce), fused(0.0))


SYSTEMS = {
    "ours": ours,
    "torchtune": torchtune,
    "TRL": trl,
    "TRL chunked": trl_chunked,
    "Liger": liger,
}


def _num_labels(inputs: Inputs) -> int:
    return int((inputs.labels != -100).sum())


def _generalized_jsd_beta(loss: KDLoss) -> float:
    """TRL and Liger have one family: beta 0 is the forward KL, 1 the reverse, 0.5 the JSD."""
    if isinstance(loss, kd_losses.JSDistanceLoss):
        assert loss.lambda_weight == 0.5
        return 0.5
    return {"ForwardKLLoss": 0.0, "ReverseKLLoss": 1.0}[type(loss).__name__]
