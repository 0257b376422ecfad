"""torchtune's LoRA layer with fewer passes over its output."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchtune.modules.peft import LoRALinear


class FusedLoRALinear(LoRALinear):
    """y = W·x + b + s·B·A·x, s = alpha / rank: the update is added by the product that makes it.

    torchtune's own layer scales the update [..., out] in one pass and adds it in another, forward
    and backward, and adds up the two gradients of x in a third. Dropout and a quantised W go its
    way.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in] → [..., out]``."""
        if not self.fused:
            return super().forward(x)
        scale = self.alpha / self.rank
        return _Update.apply(
            x, self.weight, self.bias, self.lora_a.weight, self.lora_b.weight, scale
        )

    @property
    def fused(self) -> bool:
        """Whether this is how it runs, now."""
        dropout = getattr(self.dropout, "p", 0.0)
        return not (self.disabled or self._quantize_base or dropout > 0)

    def of_gate(self, gate: Tensor, up: Tensor) -> Tensor:
        """``y`` of x = silu(gate) · up, which the backward makes again instead of keeping it."""
        scale = self.alpha / self.rank
        return _GatedUpdate.apply(
            gate, up, self.weight, self.bias, self.lora_a.weight, self.lora_b.weight, scale
        )


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out, inner = _forward(rows, weight, bias, a, b, scale)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, *others = ctx.saved_tensors
        grad_x, *grads = _backward(grad, rows, others, ctx.scale, ctx.needs_input_grad)
        return None if grad_x is None else grad_x.view(ctx.shape), *grads, None


class _GatedUpdate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        rows = F.silu(gate).mul_(up).view(-1, gate.shape[-1])
        out, inner = _forward(rows, weight, bias, a, b, scale)
        ctx.save_for_backward(gate, up, inner, weight, a, b)
        ctx.scale = scale
        return out.view(*gate.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, *others = ctx.saved_tensors
        opened = F.silu(gate)
        rows = (opened * up).view(-1, gate.shape[-1])
        needed = (True, *ctx.needs_input_grad[2:])
        grad_rows, *grads = _backward(grad, rows, others, ctx.scale, needed)
        assert grad_rows is not None
        grad_x = grad_rows.view_as(gate)
        grad_up = opened.mul_(grad_x)
        return torch.ops.aten.silu_backward(grad_x.mul_(up), gate), grad_up, *grads, None


def _forward(
    rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The output, and what lies between the two matrices of the update."""
    inner = rows @ a.t()
    return F.linear(rows, weight, bias).addmm_(inner, b.t(), alpha=scale), inner


def _backward(
    grad: Tensor, rows: Tensor, others: Sequence[Tensor], scale: float, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of rows, W, b, A and B, as far as they are needed."""
    inner, weight, a, b = others
    of_rows, of_weight, of_bias, of_a, of_b = needed[:5]
    grad = grad.reshape(-1, grad.shape[-1])
    through = (grad @ b).mul_(scale)  # [rows, rank]
    return (
        (grad @ weight).addmm_(through, a) if of_rows else None,
        grad.t() @ rows if of_weight else None,
        grad.sum(0) if of_bias else None,
        through.t() @ rows if of_a else None,
        (grad.t() @ inner).mul_(scale) if of_b else None,
    )
