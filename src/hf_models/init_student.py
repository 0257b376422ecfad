"""Students made from a teacher's directory: fewer of its layers, or fresh and smaller ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torchtune.training.precision import PRECISION_STR_TO_DTYPE

from hf_models.directories import atomic_directory
from hf_models.export import write_model
from hf_models.raw_config import read_raw_config
from hf_models.torchtune_decoder.config import parse_config, read_config
from hf_models.weights import find_tensors, read_tensors
from layer_mapping import forward

_LAYER_PREFIX = "model.layers."
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)


def init_student(
    teacher_dir: str | Path,
    output_dir: str | Path,
    layers: Sequence[int] | None = None,
    num_layers: int | None = None,
    mode: Literal["weight_copy", "random_init"] = "weight_copy",
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
) -> Path:
    """Writes a student directory: the teacher's architecture with fewer layers.

    ``weight_copy`` copies embeddings, final norm, head and the chosen layers; ``num_layers`` takes
    evenly spaced ones, those that the strategy ``layer_mapping.forward`` matches.
    ``random_init`` initialises from the config, as transformers does before pretraining.

    Args:
        teacher_dir: The teacher's Hugging Face directory.
        output_dir: Directory to write; it must not hold anything yet.
        layers: Teacher layers to copy, in the student's order; 0-based, negatives count from the
            end. Only with ``weight_copy``, instead of ``num_layers``.
        num_layers: Number of layers. ``random_init`` takes the teacher's by default.
        mode: Where the weights come from.
        seed: Seed of ``random_init``.
        overrides: Sizes that differ from the teacher's: hidden_size, intermediate_size,
            num_attention_heads, num_key_value_heads, head_dim, tie_word_embeddings. Only with
            ``random_init``.
        dtype: Dtype to store, such as ``bf16``; by default the teacher's.

    Returns:
        ``output_dir``.

    Raises:
        FileNotFoundError: If the teacher's directory or one of its files is missing.
        FileExistsError: If ``output_dir`` holds something already.
        ValueError: If the teacher is not supported or an argument is invalid.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and any(output_dir.iterdir()):
        raise FileExistsError(f"{output_dir}: is not empty; choose another output_dir or remove it")
    if isinstance(dtype, str):
        if dtype not in PRECISION_STR_TO_DTYPE:
            raise ValueError(f"dtype is {dtype!r}; use {', '.join(PRECISION_STR_TO_DTYPE)}")
        dtype = PRECISION_STR_TO_DTYPE[dtype]
    num_teacher_layers = read_config(teacher_dir).num_hidden_layers
    if mode == "weight_copy":
        if overrides:
            raise ValueError("overrides: copied weights keep their sizes; use mode random_init")
        chosen = _choose_layers(layers, num_layers, num_teacher_layers)
        tensors = _copied(teacher_dir, chosen)
        config = _config_changes(teacher_dir, len(chosen), {})
    elif mode == "random_init":
        if layers is not None:
            raise ValueError("layers: names layers to copy; with mode random_init use num_layers")
        num_layers = num_teacher_layers if num_layers is None else num_layers
        config = _config_changes(teacher_dir, num_layers, overrides or {})
        tensors = _random(teacher_dir, config, seed)
        dtype = dtype or read_config(teacher_dir).dtype
    else:
        raise ValueError(f"mode is {mode!r}; use weight_copy or random_init")
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    with atomic_directory(output_dir) as folder:
        write_model(tensors, teacher_dir, folder, config, "5GB")
    return output_dir


def _choose_layers(
    layers: Sequence[int] | None, num_layers: int | None, num_teacher_layers: int
) -> list[int]:
    if (layers is None) == (num_layers is None):
        raise ValueError("give either layers or num_layers")
    if layers is None:
        assert num_layers is not None
        if not 1 <= num_layers <= num_teacher_layers:
            raise ValueError(
                f"num_layers is {num_layers}; the teacher has {num_teacher_layers} layers"
            )
        return [teacher for _, teacher in forward(num_layers, num_teacher_layers)]
    if not layers:
        raise ValueError("layers is empty; name at least one layer of the teacher")
    for layer in layers:
        if not -num_teacher_layers <= layer < num_teacher_layers:
            raise ValueError(
                f"layers: there is no layer {layer}; the teacher's are 0 to "
                f"{num_teacher_layers - 1} (or -{num_teacher_layers} to -1)"
            )
    chosen = [layer % num_teacher_layers for layer in layers]
    for layer in chosen:
        if chosen.count(layer) > 1:
            raise ValueError(f"layers: layer {layer} is named more than once")
    return chosen


def _copied(teacher_dir: str | Path, chosen: list[int]) -> dict[str, torch.Tensor]:
    """The teacher's tensors, memory-mapped, with the chosen layers renumbered."""
    new_index = {old: new for new, old in enumerate(chosen)}
    tensors = {}
    for name, tensor in read_tensors(find_tensors(teacher_dir)).items():
        if name.startswith(_LAYER_PREFIX):
            index, _, rest = name.removeprefix(_LAYER_PREFIX).partition(".")
            if int(index) not in new_index:
                continue
            name = f"{_LAYER_PREFIX}{new_index[int(index)]}.{rest}"
        tensors[name] = tensor
    return tensors


def _random(
    teacher_dir: str | Path, changes: Mapping[str, Any], seed: int
) -> dict[str, torch.Tensor]:
    raw = {**read_raw_config(teacher_dir), **changes}
    config = parse_config(raw, "student")
    # All of transformers' model code, which nothing else in this room needs.
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = model.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def _config_changes(
    teacher_dir: str | Path, num_layers: int, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of config.json in which the student differs from the teacher."""
    for name in overrides:
        if name not in _SIZES:
            raise ValueError(f"overrides: {name} is none of {', '.join(_SIZES)}")
    if num_layers < 1:
        raise ValueError(f"num_layers is {num_layers}; it must be at least 1")
    raw = read_raw_config(teacher_dir)
    changes: dict[str, Any] = {"num_hidden_layers": num_layers, **overrides}
    # Every layer is of one kind, full attention, or the config would have been refused.
    if raw.get("layer_types"):
        changes["layer_types"] = raw["layer_types"][:1] * num_layers
    if raw.get("max_window_layers") is not None:
        changes["max_window_layers"] = num_layers
    return changes
