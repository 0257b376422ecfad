"""torchtune's LoRA layer with fewer passes over its output."""

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
        plain = self.disabled or self._quantize_base or getattr(self.dropout, "p", 0.0) > 0
        if plain:
            return super().forward(x)
        scale = self.alpha / self.rank
        return _Update.apply(
            x, self.weight, self.bias, self.lora_a.weight, self.lora_b.weight, scale
        )


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ a.t()
        out = F.linear(rows, weight, bias).addmm_(inner, b.t(), alpha=scale)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, a, b = ctx.saved_tensors
        of_x, of_weight, of_bias, of_a, of_b = ctx.needs_input_grad[:5]
        grad = grad.reshape(-1, grad.shape[-1])
        through = (grad @ b).mul_(ctx.scale)  # [rows, rank]
        grad_x = None
        if of_x:
            grad_x = (grad @ weight).addmm_(through, a).view(ctx.shape)
        return (
            grad_x,
            grad.t() @ rows if of_weight else None,
            grad.sum(0) if of_bias else None,
            through.t() @ rows if of_a else None,
            (grad.t() @ inner).mul_(ctx.scale) if of_b else None,
            None,
        )
