"""Attention that normalises queries and keys before it rotates them."""

import torch
from torch.nn.attention.flex_attention import BlockMask
from torchtune.modules import MultiHeadAttention


class QKNormAttention(MultiHeadAttention):
    """torchtune's attention with Qwen3's order: per-head RMSNorm, then rotary embedding.

    The parent rotates first, which is another function because the norm's weight differs between
    the dimensions that the rotation mixes. It needs ``q_norm``, ``k_norm`` and ``pos_embeddings``.
    """

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        mask: torch.Tensor | BlockMask | None = None,
        input_pos: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Self-attention.

        Args:
            x: Input, ``[b, s, d]``.
            y: The same tensor, as torchtune's decoder layer passes it.
            mask: True where a token (row) may attend to another (column), ``[b, s, s]``, or a
                block mask; causal by default.
            input_pos: Position of each token, ``[b, s]``; by default its index.

        Returns:
            ``[b, s, d]``.
        """
        assert y is None or y is x, "self-attention only"
        heads = (-1, self.head_dim)
        q = self.q_norm(self.q_proj(x).unflatten(-1, heads))
        k = self.k_norm(self.k_proj(x).unflatten(-1, heads))
        v = self.v_proj(x).unflatten(-1, heads).transpose(1, 2)
        q = self.pos_embeddings(q, input_pos=input_pos).transpose(1, 2)
        k = self.pos_embeddings(k, input_pos=input_pos).transpose(1, 2)
        if self.kv_cache is not None and self.cache_enabled:
            k, v = self.kv_cache.update(k, v)
        queries_per_key = self.num_heads // self.num_kv_heads
        out = self._attention_call(
            q,
            k.repeat_interleave(queries_per_key, dim=1),
            v.repeat_interleave(queries_per_key, dim=1),
            mask=mask,
            dropout_p=self.attn_dropout if self.training else 0.0,
            is_causal=self.kv_cache is None and mask is None and self.is_causal,
        )
        return self.output_proj(out.transpose(1, 2).flatten(2))
