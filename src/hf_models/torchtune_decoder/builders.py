"""torchtune decoders, with or without LoRA, in the shape that a directory's config.json gives.

Builders only build: weights come from :class:`~hf_models.HFCheckpointer`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import nn
from torchtune.modules import (
    MultiHeadAttention,
    TiedLinear,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)
from transformers import PreTrainedConfig

from hf_models.quantization import nf4_linear
from hf_models.torchtune_decoder.attention import QKNormAttention
from hf_models.torchtune_decoder.config import head_dim, read_config
from hf_models.torchtune_decoder.cpu_layers import FusedFeedForward, FusedRMSNorm
from hf_models.torchtune_decoder.dora import DoRALinear
from hf_models.torchtune_decoder.lora_linear import FusedLoRALinear
from hf_models.torchtune_decoder.rope import RotaryEmbedding

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "output_proj")
MLP_MODULES = ("w1", "w2", "w3")

# (name, in_dim, out_dim, bias) -> the linear layer of that name
MakeLinear = Callable[[str, int, int, bool], nn.Module]


def decoder(
    checkpoint_dir: str | Path,
    max_seq_len: int | None = None,
    attn_dropout: float = 0.0,
    output_hidden_states: bool | Sequence[int] | None = None,
) -> TransformerDecoder:
    """The decoder of a Llama, Qwen2 or Qwen3 directory, without its weights.

    Args:
        checkpoint_dir: Directory with a config.json.
        max_seq_len: Longest sequence; by default the config's ``max_position_embeddings``.
        attn_dropout: Dropout on the attention weights in training.
        output_hidden_states: Accepted and ignored.

    Raises:
        FileNotFoundError: If there is no config.json.
        ValueError: If it asks for something that is not supported.
    """
    # Configs of other recipes carry output_hidden_states; here layers are tapped where needed.
    config = read_config(checkpoint_dir)
    return build_decoder(config, max_seq_len=max_seq_len, attn_dropout=attn_dropout)


def lora_decoder(
    checkpoint_dir: str | Path,
    lora_attn_modules: Sequence[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    *,
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    use_dora: bool = False,
    quantize_base: bool = False,
    max_seq_len: int | None = None,
    attn_dropout: float = 0.0,
    output_hidden_states: bool | Sequence[int] | None = None,
) -> TransformerDecoder:
    """:func:`decoder` with torchtune's LoRA layers in the chosen places.

    Args:
        checkpoint_dir: Directory with a config.json.
        lora_attn_modules: Any of ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj``.
        apply_lora_to_mlp: Whether the three linear layers of each MLP get LoRA.
        apply_lora_to_output: Whether the output head gets LoRA; it must not be tied.
        lora_rank: Rank of the update.
        lora_alpha: The update is scaled by ``lora_alpha / lora_rank``.
        lora_dropout: Dropout on the update's input in training.
        use_dora: Train the length of each row of the updated weights too (DoRA).
        quantize_base: Keep all linear layers' frozen weights but the head's in NF4 (QLoRA).
        max_seq_len: Longest sequence; by default the config's ``max_position_embeddings``.
        attn_dropout: Dropout on the attention weights in training.
        output_hidden_states: Accepted and ignored.

    Raises:
        FileNotFoundError: If there is no config.json.
        ValueError: If it asks for something that is not supported, or a LoRA setting is invalid.
    """
    if unknown := [name for name in lora_attn_modules if name not in ATTENTION_MODULES]:
        raise ValueError(
            f"lora_attn_modules: {unknown[0]!r} is none of {', '.join(ATTENTION_MODULES)}"
        )
    if lora_rank < 1:
        raise ValueError(f"lora_rank is {lora_rank}; it must be at least 1")
    if not 0 <= lora_dropout < 1:
        raise ValueError(f"lora_dropout is {lora_dropout}; it must be at least 0 and below 1")
    config = read_config(checkpoint_dir)
    if apply_lora_to_output and config.tie_word_embeddings:
        raise ValueError(
            f"apply_lora_to_output: the head of {checkpoint_dir} is tied to its embeddings and "
            "cannot have LoRA of its own"
        )
    places = {*lora_attn_modules, *(MLP_MODULES if apply_lora_to_mlp else ())}
    places |= {"output"} if apply_lora_to_output else set()
    if not places:
        raise ValueError("lora_decoder: no module gets LoRA; name some in lora_attn_modules")

    kind = DoRALinear if use_dora else FusedLoRALinear
    with_lora = partial(kind, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout)

    def make_linear(name: str, in_dim: int, out_dim: int, bias: bool) -> nn.Module:
        if quantize_base and name != "output":
            return nf4_linear(in_dim, out_dim, bias, with_lora if name in places else None)
        if name in places:
            return with_lora(in_dim, out_dim, use_bias=bias)
        return plain_linear(name, in_dim, out_dim, bias)

    return build_decoder(config, make_linear, max_seq_len, attn_dropout)


def plain_linear(name: str, in_dim: int, out_dim: int, bias: bool) -> nn.Module:
    """Makes every linear layer an ``nn.Linear``, whatever its name."""
    return nn.Linear(in_dim, out_dim, bias=bias)


def build_decoder(
    config: PreTrainedConfig,
    make_linear: MakeLinear = plain_linear,
    max_seq_len: int | None = None,
    attn_dropout: float = 0.0,
) -> TransformerDecoder:
    """The decoder that ``config`` describes, its linear layers made by ``make_linear``."""
    max_seq_len = max_seq_len or config.max_position_embeddings
    rope = RotaryEmbedding(config, max_seq_len)
    layers = nn.ModuleList(
        TransformerSelfAttentionLayer(
            attn=_attention(config, make_linear, rope, max_seq_len, attn_dropout),
            mlp=_mlp(config, make_linear),
            sa_norm=FusedRMSNorm(config.hidden_size, eps=config.rms_norm_eps),
            mlp_norm=FusedRMSNorm(config.hidden_size, eps=config.rms_norm_eps),
        )
        for _ in range(config.num_hidden_layers)
    )
    embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
    return TransformerDecoder(
        tok_embeddings=embeddings,
        layers=layers,
        max_seq_len=max_seq_len,
        num_heads=config.num_attention_heads,
        head_dim=head_dim(config),
        norm=FusedRMSNorm(config.hidden_size, eps=config.rms_norm_eps),
        output=TiedLinear(embeddings)
        if config.tie_word_embeddings
        else make_linear("output", config.hidden_size, config.vocab_size, False),
    )


def _attention(
    config: PreTrainedConfig,
    make_linear: MakeLinear,
    rope: RotaryEmbedding,
    max_seq_len: int,
    attn_dropout: float,
) -> MultiHeadAttention:
    width, width_head = config.hidden_size, head_dim(config)
    width_q = config.num_attention_heads * width_head
    width_kv = config.num_key_value_heads * width_head
    qkv_bias = config.model_type == "qwen2" or config.attention_bias
    output_bias = config.model_type != "qwen2" and config.attention_bias
    norms = {}
    if config.model_type == "qwen3":
        norms["q_norm"] = FusedRMSNorm(width_head, eps=config.rms_norm_eps)
        norms["k_norm"] = FusedRMSNorm(width_head, eps=config.rms_norm_eps)
    return (QKNormAttention if norms else MultiHeadAttention)(
        # torchtune wants a multiple of the number of heads here and only stores it.
        embed_dim=width_q,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=width_head,
        q_proj=make_linear("q_proj", width, width_q, qkv_bias),
        k_proj=make_linear("k_proj", width, width_kv, qkv_bias),
        v_proj=make_linear("v_proj", width, width_kv, qkv_bias),
        output_proj=make_linear("output_proj", width_q, width, output_bias),
        pos_embeddings=rope,
        max_seq_len=max_seq_len,
        attn_dropout=attn_dropout,
        **norms,
    )


def _mlp(config: PreTrainedConfig, make_linear: MakeLinear) -> FusedFeedForward:
    width, inner = config.hidden_size, config.intermediate_size
    bias = getattr(config, "mlp_bias", False)
    return FusedFeedForward(
        gate_proj=make_linear("w1", width, inner, bias),
        down_proj=make_linear("w2", inner, width, bias),
        up_proj=make_linear("w3", width, inner, bias),
    )
