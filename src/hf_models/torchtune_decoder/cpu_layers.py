"""torchtune's norm and MLP with fewer passes over memory, and less kept for the backward, on a CPU.

There an elementwise operation costs as much as it reads and writes; on a GPU a compiler or a kernel
fuses them, and torchtune's own forward runs. The functions are the same.

Shapes: D width, I inner width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchtune.modules import FeedForward, RMSNorm

from hf_models.torchtune_decoder.lora_linear import FusedLoRALinear


class FusedRMSNorm(RMSNorm):
    """``y = w · x / √(mean(x²) + ε)``."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] → [..., D]``."""
        scale = self.scale
        if x.device.type != "cpu" or not x.dtype == scale.dtype == torch.float32:
            return super().forward(x)
        return _Norm.apply(x, scale, self.eps)


class FusedFeedForward(FeedForward):
    """``w2(silu(w1(x)) · w3(x))``; what lies between is made again in the backward."""

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D] → [..., D]``."""
        if x.device.type != "cpu":
            return super().forward(x)
        gate, up = self.w1(x), self.w3(x)
        if isinstance(self.w2, FusedLoRALinear) and self.w2.fused:
            return self.w2.of_gate(gate, up)
        return self.w2(_Gate.apply(gate, up))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = x.shape[-1]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # ‖x‖²/D + ε; the norm itself is scaled, so that its square overflows no earlier than x².
        inverse = norm.square_().div_(size).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x, inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        of_x, of_weight, _ = ctx.needs_input_grad
        grad_weight = grad_x = None
        if of_weight:
            grad_weight = (grad * x).mul_(inverse).flatten(0, -2).sum(0)
        if of_x:
            scaled = grad * weight
            along = torch.linalg.vecdot(scaled, x).unsqueeze(-1)
            # One factor at a time: the third power of 1e-15 is none in fp32.
            along.mul_(inverse).div_(-x.shape[-1]).mul_(inverse).mul_(inverse)
            grad_x = scaled.mul_(inverse).addcmul_(x, along)
        return grad_x, grad_weight, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up
