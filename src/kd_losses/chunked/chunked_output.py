"""The same divergences for lists of logit chunks, as torchtune's own recipes produce them.

They fit wherever torchtune's ``...WithChunkedOutputLoss`` classes do. Logits that exist already
cost their memory no matter how they are split; `LinearKDLoss` is the pass that saves it.
"""

import torch
from torch import Tensor, nn

from kd_losses.divergences.base import KDLoss
from kd_losses.divergences.forward_kl import ForwardKLLoss
from kd_losses.divergences.js_distance import JSDistanceLoss
from kd_losses.divergences.reverse_kl import ReverseKLLoss
from kd_losses.divergences.symmetric_kl import SymmetricKLLoss
from kd_losses.divergences.tv_distance import TVDistanceLoss
from kd_losses.functional import require


class ChunkedOutputLoss(nn.Module):
    """A divergence over logits that come as a list of chunks along the sequence.

    Args:
        loss: the divergence.
        num_output_chunks: how many chunks the recipe makes the models return; short sequences
            return fewer.

    Raises:
        ValueError: if ``num_output_chunks`` is below 1.
    """

    def __init__(self, loss: KDLoss, num_output_chunks: int) -> None:
        super().__init__()
        require(num_output_chunks >= 1, "num_output_chunks", num_output_chunks, "at least 1")
        self.loss = loss
        self.num_output_chunks = num_output_chunks

    def forward(
        self,
        student_logits: list[Tensor],
        teacher_logits: list[Tensor],
        labels: Tensor,
        normalize: bool = True,
    ) -> Tensor:
        """Return the loss over the positions whose label is not ``ignore_index``.

        Args:
            student_logits: chunks ``[B, S_i, V]``.
            teacher_logits: chunks of the same lengths.
            labels: ``[B, S]`` with S the sum of all S_i, already shifted.
            normalize: mean over the counted positions if true, else their sum.

        Returns:
            A scalar; 0 with a zero gradient when no position counts.

        Raises:
            ValueError: if the chunks do not fit together or do not cover the labels.
        """
        lengths = [chunk.shape[1] for chunk in student_logits]
        if len(teacher_logits) != len(lengths) or sum(lengths) != labels.shape[1]:
            raise ValueError(
                f"student chunks of lengths {lengths} and {len(teacher_logits)} teacher chunks do "
                f"not cover labels of length {labels.shape[1]}"
            )
        chunks = zip(student_logits, teacher_logits, labels.split(lengths, dim=1), strict=True)
        total = torch.stack([self.loss(*chunk, normalize=False) for chunk in chunks]).sum()
        if not normalize:
            return total
        return total / (labels != self.loss.ignore_index).sum().clamp(min=1)


class ForwardKLWithChunkedOutputLoss(ChunkedOutputLoss):
    """`ForwardKLLoss` over lists of chunks."""

    def __init__(
        self, num_output_chunks: int = 8, temperature: float = 1.0, ignore_index: int = -100
    ) -> None:
        loss = ForwardKLLoss(temperature=temperature, ignore_index=ignore_index)
        super().__init__(loss, num_output_chunks)


class ReverseKLWithChunkedOutputLoss(ChunkedOutputLoss):
    """`ReverseKLLoss` over lists of chunks."""

    def __init__(
        self, num_output_chunks: int = 8, temperature: float = 1.0, ignore_index: int = -100
    ) -> None:
        loss = ReverseKLLoss(temperature=temperature, ignore_index=ignore_index)
        super().__init__(loss, num_output_chunks)


class SymmetricKLWithChunkedOutputLoss(ChunkedOutputLoss):
    """`SymmetricKLLoss` over lists of chunks."""

    def __init__(
        self,
        num_output_chunks: int = 8,
        lambda_weight: float = 0.9,
        temperature: float = 1.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(
            SymmetricKLLoss(lambda_weight, temperature, ignore_index), num_output_chunks
        )


class JSDistanceWithChunkedOutputLoss(ChunkedOutputLoss):
    """`JSDistanceLoss` over lists of chunks."""

    def __init__(
        self,
        num_output_chunks: int = 8,
        lambda_weight: float = 0.9,
        temperature: float = 1.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(
            JSDistanceLoss(lambda_weight, temperature, ignore_index), num_output_chunks
        )


class TVDistanceWithChunkedOutputLoss(ChunkedOutputLoss):
    """`TVDistanceLoss` over lists of chunks."""

    def __init__(
        self, num_output_chunks: int = 8, temperature: float = 1.0, ignore_index: int = -100
    ) -> None:
        loss = TVDistanceLoss(temperature=temperature, ignore_index=ignore_index)
        super().__init__(loss, num_output_chunks)
