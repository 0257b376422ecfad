"""What a Hugging Face directory's config.json says, and whether we can build it."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from hf_models.raw_config import read_raw_config

MODEL_TYPES = ("llama", "qwen2", "qwen3")
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # those that do not depend on sequence length


def read_config(checkpoint_dir: str | Path) -> PreTrainedConfig:
    """The transformers config of a directory, checked to be one that we can build.

    Nothing is downloaded, no code from the directory is run and no weights are read, so this is
    the cheap way to learn ``num_hidden_layers``, ``hidden_size`` or ``vocab_size``.

    Raises:
        FileNotFoundError: If the directory or its config.json does not exist.
        ValueError: If config.json is malformed or asks for something that is not supported; the
            message names the file and the feature.
    """
    return parse_config(read_raw_config(checkpoint_dir), str(Path(checkpoint_dir, "config.json")))


def parse_config(raw: dict[str, Any], source: str) -> PreTrainedConfig:
    """The checked transformers config for the contents of a config.json.

    Args:
        raw: Contents of a config.json.
        source: What error messages call it, usually the file's path.

    Raises:
        ValueError: If the contents are malformed or ask for something that is not supported.
    """
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"{source}: model_type {model_type!r} is not supported; "
            f"supported are {', '.join(MODEL_TYPES)} (dense)"
        )
    if raw.get("quantization_config"):
        raise ValueError(
            f"{source}: quantized weights (quantization_config) are not supported; "
            "use the model in bf16 or fp32"
        )
    try:
        config = CONFIG_MAPPING[model_type].from_dict(raw)
    except (StrictDataclassError, TypeError, KeyError, ValueError) as err:
        reason = str(err).splitlines()[-1].strip()
        raise ValueError(f"{source}: {type(err).__name__}: {reason}") from err
    for problem in _unsupported(config):
        raise ValueError(f"{source}: {problem}")
    return config


def head_dim(config: PreTrainedConfig) -> int:
    """Width of one attention head; given explicitly it may differ from width / heads."""
    explicit: int | None = getattr(config, "head_dim", None)
    return explicit or config.hidden_size // config.num_attention_heads


def _unsupported(config: PreTrainedConfig) -> list[str]:
    """What in ``config`` we would compute wrongly, each in words."""
    problems = [
        f"{name} is {getattr(config, name)}; it must be at least 1"
        for name in _SIZES
        if getattr(config, name) < 1
    ]
    if problems:
        return problems
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        others = ", ".join(sorted(layer_types - {"full_attention"}))
        problems.append(f"{others} (layer_types or use_sliding_window) is not supported")
    if config.hidden_act != "silu":
        problems.append(f"hidden_act {config.hidden_act!r} is not supported; only silu is")
    if config.num_attention_heads % config.num_key_value_heads:
        problems.append(
            f"num_attention_heads {config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {config.num_key_value_heads}"
        )
    rope = config.rope_parameters
    if rope["rope_type"] not in ROPE_TYPES:
        problems.append(
            f"rope type {rope['rope_type']!r} is not supported; "
            f"supported are {', '.join(ROPE_TYPES)}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append("a partial rotary embedding (partial_rotary_factor) is not supported")
    if head_dim(config) % 2:
        problems.append(f"head_dim {head_dim(config)} is odd; the rotary embedding needs pairs")
    return problems
