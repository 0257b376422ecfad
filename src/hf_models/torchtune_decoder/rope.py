"""Rotary position embedding in the layout of Hugging Face checkpoints."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hf_models.torchtune_decoder.config import head_dim


class RotaryEmbedding(nn.Module):
    """Rotates the halves of each head: ``[x1·cos - x2·sin, x2·cos + x1·sin]``.

    Because dimension i is paired with i + h/2, as transformers does, and not with its neighbour,
    as torchtune's Llama modules do, query and key weights need no permutation.

    Frequencies and attention scaling come from transformers. Cos and sin are computed in fp32 for
    ``max_seq_len`` positions: 1 KiB per position for heads of 128. Layers share one instance.

    Args:
        config: The model's config; its ``rope_parameters`` say how frequencies are scaled.
        max_seq_len: Number of positions.
    """

    cache: torch.Tensor  # [max_seq_len, 2, h/2]: cos, sin

    def __init__(self, config: PreTrainedConfig, max_seq_len: int) -> None:
        super().__init__()
        self.config = config
        self.max_seq_len = max_seq_len
        self.rope_init()

    def rope_init(self) -> None:
        """Fills the cache on the default device (the recipes' hook after a meta-device build)."""
        inv_freq, scaling = _frequencies(self.config)
        positions = torch.arange(self.max_seq_len, dtype=torch.float32)
        angles = torch.outer(positions, inv_freq.to(positions.device))
        cache = torch.stack([angles.cos(), angles.sin()], dim=1) * scaling
        self.register_buffer("cache", cache, persistent=False)

    def forward(self, x: torch.Tensor, *, input_pos: torch.Tensor | None = None) -> torch.Tensor:
        """Rotates ``x`` by its positions.

        Args:
            x: Queries or keys, ``[b, s, n, h]``.
            input_pos: Position of each token, ``[b, s]`` or ``[s]``; by default its index.

        Returns:
            The same shape and dtype as ``x``.
        """
        seq_len = x.shape[1]
        cache = self.cache[:seq_len] if input_pos is None else self.cache[input_pos]
        cache = cache.to(x.dtype).view(-1, seq_len, 1, 2, x.shape[-1] // 2)
        cos, sin = cache.unbind(-2)
        return _Rotation.apply(x, cos, sin)


class _Rotation(torch.autograd.Function):
    """Its backward is the rotation the other way: nothing of x is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, -1), None, None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, way: int) -> torch.Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    first = torch.addcmul(x1 * cos, x2, sin, value=-way)
    second = torch.addcmul(x2 * cos, x1, sin, value=way)
    return torch.cat([first, second], dim=-1)


def _frequencies(config: PreTrainedConfig) -> tuple[torch.Tensor, float]:
    rope = config.rope_parameters
    # On the CPU whatever the default device, so that the same bits come out everywhere.
    with torch.device("cpu"):
        if rope["rope_type"] == "default":
            exponents = torch.arange(0, head_dim(config), 2, dtype=torch.float32) / head_dim(config)
            return 1.0 / rope["rope_theta"] ** exponents, 1.0
        inv_freq, scaling = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
        return inv_freq, scaling
