"""DoRA: LoRA whose rows are brought to trained lengths."""

from typing import Any

import torch
from torchtune.modules.peft import LoRALinear

from hf_models.precision import master


class DoRALinear(LoRALinear):
    """y = m / ‖W'‖ · (W·x + s·B·A·x) + b, where W' = W + s·B·A and s = alpha / rank.

    ``magnitude`` is m [out], trained beside A and B and initially ‖W‖. The norms ‖W'‖ [out] of the
    rows are constants to the backward, as in section 4.3 of https://arxiv.org/abs/2402.09353.
    torchtune's layer of that name scales the bias b too, which neither the paper nor PEFT does.

    Args:
        in_dim: Width of the input.
        out_dim: Width of the output.
        options: The other arguments of torchtune's ``LoRALinear``.
    """

    def __init__(self, in_dim: int, out_dim: int, **options: Any) -> None:
        super().__init__(in_dim, out_dim, **options)
        self.magnitude = torch.nn.Parameter(torch.empty(out_dim))

    def adapter_params(self) -> list[str]:
        """Names of the adapter's parameters within the layer."""
        return [*super().adapter_params(), "magnitude"]

    def row_scale(self) -> torch.Tensor:
        """m / ‖W'‖ [out], in the dtype that m is kept in; its gradient goes to m alone."""
        magnitude = master(self, "magnitude")
        with torch.no_grad():
            update = self.lora_b.weight @ self.lora_a.weight
            weight = self.weight.to(update.dtype)  # one in NF4 is unpacked
            norms = row_norms(weight + (self.alpha / self.rank) * update)
        return magnitude / norms.to(magnitude.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in] → [..., out]``."""
        out = super().forward(x)
        if self.disabled:
            return out
        unbiased = out if self.bias is None else out - self.bias
        # In this form the layer starts as exactly the base's, and a factor near 1 is not rounded.
        return out + (self.row_scale() - 1).to(out.dtype) * unbiased


def row_norms(weight: torch.Tensor) -> torch.Tensor:
    """‖W‖ [out] of the rows of a weight [out, in], in fp32 or wider.

    They are above 0, so that a row of zeros stays one.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.norm(dim=1, dtype=dtype).clamp(min=torch.finfo(dtype).tiny)
