"""Students made from a teacher's directory: fewer of its layers, or fresh and smaller ones."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torchtune.training.precision import PRECISION_STR_TO_DTYPE

from hf_models.block_scores import Calibration
from hf_models.directories import atomic_directory
from hf_models.export import write_files
from hf_models.raw_config import read_raw_config
from hf_models.student_blocks import Count, Layers, choose_blocks, renumbered
from hf_models.student_card import write_origin
from hf_models.student_config import check_student, config_changes
from hf_models.torchtune_decoder.config import MODEL_TYPES
from hf_models.transformers_model.builders import auto_model
from hf_models.transformers_model.config import any_task
from hf_models.transformers_model.model import TransformersModel
from hf_models.transformers_model.quiet import quiet
from hf_models.weights import TensorInfo, find_tensors, read_header, read_tensors, weight_files


def init_student(
    teacher_dir: str | Path,
    output_dir: str | Path,
    layers: Layers = None,
    num_layers: Count = None,
    mode: Literal["weight_copy", "random_init"] = "weight_copy",
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
    task: str | None = None,
    calibration: Iterable[Calibration] | None = None,
    device: str = "cpu",
) -> Path:
    """Writes a student directory: the teacher's architecture with fewer layers.

    ``weight_copy`` copies the chosen layers and all that is not in a stack (embeddings, norms,
    pooler, head); ``num_layers`` takes evenly spaced ones, those that the strategy
    ``layer_mapping.forward`` matches. ``random_init`` initialises from the config, as transformers
    does before pretraining. Any model that `auto_model` takes can be a teacher.

    Args:
        teacher_dir: The teacher's Hugging Face directory.
        output_dir: Directory to write; it must not hold anything yet.
        layers: Teacher layers to copy, in the student's order; 0-based, negatives count from the
            end. Of an encoder-decoder for each stack: ``{encoder: [...], decoder: [...]}``; one
            that is not named keeps all. Or ``block_influence`` or ``angular_distance``, see
            `hf_models.block_scores`, with ``num_layers`` and ``calibration``.
        num_layers: Number of layers, or that of each stack. ``random_init`` takes the teacher's by
            default.
        mode: Where the weights come from.
        seed: Seed of ``random_init``.
        overrides: Sizes that differ from the teacher's, such as hidden_size, intermediate_size or
            num_attention_heads, as its config.json calls them. Only with ``random_init``.
        dtype: Dtype to store, such as ``bf16``; by default the teacher's.
        task: What the teacher is for, where its config.json does not tell.
        calibration: Texts that layers are chosen by.
        device: Where they are measured.

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
    stored = _dtype(dtype)
    if mode not in ("weight_copy", "random_init"):
        raise ValueError(f"mode is {mode!r}; use weight_copy or random_init")
    model = auto_model(teacher_dir, task or any_task(teacher_dir))
    if mode == "random_init":
        if layers is not None:
            raise ValueError("layers: names layers to copy; with mode random_init use num_layers")
        _write_random(model, teacher_dir, output_dir, num_layers, overrides or {}, seed, stored)
        return output_dir
    if overrides:
        raise ValueError("overrides: copied weights keep their sizes; use mode random_init")
    choice = choose_blocks(model, teacher_dir, layers, num_layers, calibration, device)
    raw = read_raw_config(teacher_dir) | config_changes(model, teacher_dir, choice.blocks, {})
    tensors = renumbered(_tensors(model, teacher_dir), model, choice.blocks)
    if stored is not None:
        tensors = {n: t.to(stored) if t.is_floating_point() else t for n, t in tensors.items()}
    with atomic_directory(output_dir) as folder:
        write_files(tensors, raw, teacher_dir, folder)
        depths = {name: stack.depth for name, stack in model.facts.stacks.items()}
        write_origin(folder, teacher_dir, choice, depths)
        _check_written(folder, teacher_dir, raw)
    return output_dir


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    if not isinstance(name, str):
        return name
    if name not in PRECISION_STR_TO_DTYPE:
        raise ValueError(f"dtype is {name!r}; use {', '.join(PRECISION_STR_TO_DTYPE)}")
    return PRECISION_STR_TO_DTYPE[name]


def _tensors(model: TransformersModel, teacher_dir: str | Path) -> dict[str, torch.Tensor]:
    """The teacher's tensors under its files' names, memory-mapped."""
    known = read_raw_config(teacher_dir).get("model_type") in MODEL_TYPES
    if known and model.facts.task == "causal_lm":
        return read_tensors(find_tensors(teacher_dir))
    found: dict[str, TensorInfo] = {}
    for path in weight_files(Path(teacher_dir)):
        found |= read_header(path, floats_only=False)
    return read_tensors(found)


def _kind(raw: Mapping[str, Any]) -> Any:
    """The class that transformers opens a directory with."""
    names = raw.get("architectures") or ["AutoModel"]
    return getattr(transformers, names[0], transformers.AutoModel)


def _check_written(folder: Path, teacher_dir: str | Path, raw: Mapping[str, Any]) -> None:
    """Make sure that transformers misses and finds nothing that it would not in the teacher.

    A pretrained directory often lacks a pooler, or has a head for another task.
    """
    own, teachers = _report(folder, raw), _report(teacher_dir, raw)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        new = sorted(set(own[what]) - set(teachers[what]))
        if new:
            raise ValueError(
                f"the student would have {what.replace('_', ' ')}: {new[0]}; such models cannot be "
                "copied block by block"
            )


def _report(directory: str | Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    with quiet():
        _, report = _kind(raw).from_pretrained(
            directory, local_files_only=True, device_map="meta", output_loading_info=True
        )
    return report


def _write_random(
    model: TransformersModel,
    teacher_dir: str | Path,
    output_dir: Path,
    num_layers: Count,
    overrides: Mapping[str, Any],
    seed: int,
    dtype: torch.dtype | None,
) -> None:
    depths = {name: stack.depth for name, stack in model.facts.stacks.items()}
    given = num_layers if isinstance(num_layers, Mapping) else dict.fromkeys(depths, num_layers)
    for name, number in given.items():
        if name not in depths or (number is not None and number < 1):
            raise ValueError(
                f"num_layers is {num_layers}; it must be at least 1, for {' and '.join(depths)}"
            )
    counts = {name: given.get(name) or depth for name, depth in depths.items()}
    blocks = {name: list(range(count)) for name, count in counts.items()}
    changes = config_changes(model, teacher_dir, blocks, overrides)
    raw = read_raw_config(teacher_dir) | changes
    check_student(raw)
    with atomic_directory(output_dir) as folder:
        state = _random_state(raw, seed, folder)
        stored = dtype or model.module.config.dtype or torch.float32
        tensors = {name: tensor.to(stored) for name, tensor in state.items()}
        write_files(tensors, raw, teacher_dir, folder)


def _random_state(raw: Mapping[str, Any], seed: int, folder: Path) -> dict[str, torch.Tensor]:
    """Fresh weights under the names that transformers' files have, by way of ``folder``."""
    config = transformers.CONFIG_MAPPING[raw["model_type"]].from_dict(dict(raw))
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        try:
            fresh = _kind(raw)._from_config(config, dtype=torch.float32)
        except (ValueError, TypeError, RuntimeError) as err:
            why = " ".join(str(err).split())
            raise ValueError(f"overrides: no such model can be built: {why}") from err
        fresh.save_pretrained(folder, max_shard_size="1TB")
    tensors = read_tensors(read_header(folder / "model.safetensors"))
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    (folder / "model.safetensors").unlink()
    return copies
