"""Writing model directories that transformers, lm_eval and vLLM open like any other."""

import json
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file

from hf_models.directories import (
    atomic_directory,
    copy_companions,
    copy_tokenizer,
    portable_path,
    without_machine_paths,
)
from hf_models.raw_config import read_raw_config
from hf_models.torchtune_decoder.config import parse_config
from hf_models.torchtune_decoder.names import hf_module_name, hf_name, peft_name
from hf_models.weights import INDEX_FILE, TensorInfo, check_tensors

Tensors = Mapping[str, torch.Tensor]


def save_pretrained(
    state_dict: Tensors,
    config_source_dir: str | Path,
    target_dir: str | Path,
    *,
    config_overrides: Mapping[str, Any] | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Writes a Hugging Face directory; ``target_dir`` is complete or untouched.

    Args:
        state_dict: Weights under torchtune's names.
        config_source_dir: Directory that config.json, tokenizer and generation config come from.
        target_dir: Directory to write; replaced if it exists.
        config_overrides: Fields of config.json to change.
        max_shard_size: Larger models are split into files of at most this size.

    Raises:
        ValueError: If the weights are not exactly those that the config asks for.
        OSError: If the directory cannot be written.
    """
    tensors = {hf_name(name): tensor for name, tensor in state_dict.items()}
    with atomic_directory(target_dir) as folder:
        write_model(tensors, config_source_dir, folder, config_overrides or {}, max_shard_size)


def write_model(
    tensors: Tensors,
    config_source_dir: str | Path,
    folder: Path,
    config_overrides: Mapping[str, Any],
    max_shard_size: int | str,
    tokenizer_dir: str | Path | None = None,
) -> None:
    """Writes weights (under transformers' names), config and companions into ``folder``.

    The tokenizer is that of ``tokenizer_dir``, by default that of ``config_source_dir``.

    Raises:
        ValueError: If the weights are not exactly those that the config asks for.
        OSError: If a file cannot be written.
    """
    raw = {**read_raw_config(config_source_dir), **config_overrides}
    config = parse_config(raw, f"config of {folder}")
    infos = {name: TensorInfo(folder, tuple(t.shape)) for name, t in tensors.items()}
    check_tensors(infos, config, "weights to save")
    write_files(tensors, raw, config_source_dir, folder, max_shard_size, tokenizer_dir)


def write_files(
    tensors: Tensors,
    raw_config: Mapping[str, Any],
    source_dir: str | Path,
    folder: Path,
    max_shard_size: int | str = "5GB",
    tokenizer_dir: str | Path | None = None,
) -> None:
    """Writes weights under their files' names, a config.json that tells their dtype, companions.

    Raises:
        OSError: If a file cannot be written.
    """
    raw = without_machine_paths(raw_config)
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    # Older readers know torch_dtype only, so a config that has it keeps it.
    for key in {"dtype", "torch_dtype"} & raw.keys() or {"dtype"}:
        raw[key] = str(dtype).removeprefix("torch.")
    copy_companions(source_dir, folder)
    copy_tokenizer(tokenizer_dir or source_dir, folder)
    write_json(folder / "config.json", raw)
    _write_shards(tensors, folder, max_shard_size)


def write_adapter(
    adapter: Tensors, adapter_config: Mapping[str, Any], base_dir: str | Path | None, folder: Path
) -> None:
    """Writes a LoRA adapter in PEFT's format into ``folder``.

    It names its base relative to the current folder, or, where that lies elsewhere, not at all.

    Args:
        adapter: LoRA matrices under torchtune's names.
        adapter_config: At least ``r``, ``lora_alpha`` and ``target_modules`` (torchtune's names).
        base_dir: Directory of the model that the adapter belongs to; None leaves it unnamed.
        folder: Directory to write into.

    Raises:
        OSError: If a file cannot be written.
    """
    defaults = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"}
    targets = [hf_module_name(name) for name in adapter_config["target_modules"]]
    named = None if base_dir is None else portable_path(base_dir)
    base = {"target_modules": targets, "base_model_name_or_path": named}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "adapter_config.json", {**defaults, **adapter_config, **base})
    tensors = {peft_name(name): tensor for name, tensor in adapter.items()}
    write_tensors(tensors, folder / "adapter_model.safetensors")


def check_shard_size(size: int | str) -> None:
    """Raise `ValueError` unless files can be split by ``size``, a number of bytes or as ``5GB``."""
    try:
        _split({}, size)
    except ValueError as err:
        raise ValueError(f"max_shard_size is {size!r}; use a size such as 5GB or 500MB") from err


def _write_shards(tensors: Tensors, folder: Path, max_shard_size: int | str) -> None:
    split = _split(tensors, max_shard_size)
    for file, names in split.filename_to_tensors.items():
        write_tensors({name: tensors[name] for name in names}, folder / file)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / INDEX_FILE, index)


def _split(tensors: Tensors, max_shard_size: int | str) -> Any:
    return split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )


def write_tensors(tensors: Tensors, path: Path) -> None:
    """Write one safetensors file.

    Raises:
        OSError: If it cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except SafetensorError as err:  # a full disk among others
        raise OSError(f"{path}: could not be written: {err}") from err


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write one JSON file, as transformers lays it out."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
