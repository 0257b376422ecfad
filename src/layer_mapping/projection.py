"""From the student's width to the teacher's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Linear):
    """A bias-free linear map that starts as the identity.

    Unequal widths start as the identity cut off or padded with zeros: deterministic, so that
    ranks agree without a broadcast. The weight [out, in] is fp32 whatever the default dtype is,
    and the product is taken in the input's dtype.

    Args:
        student_dim: width of the input.
        teacher_dim: width of the output.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__(student_dim, teacher_dim, bias=False, dtype=torch.float32)

    def reset_parameters(self) -> None:
        """Start from the identity."""
        nn.init.eye_(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``hidden`` [..., student_dim] to [..., teacher_dim], in its own dtype."""
        return F.linear(hidden, self.weight.to(hidden.dtype))
