"""Weights of a model directory under transformers' names: which files, what is in them, reading."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from hf_models.torchtune_decoder.builders import build_decoder
from hf_models.torchtune_decoder.config import read_config
from hf_models.torchtune_decoder.names import hf_name

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says about one tensor."""

    file: Path
    shape: tuple[int, ...]


def find_tensors(
    checkpoint_dir: str | Path, files: Iterable[str] | None = None
) -> dict[str, TensorInfo]:
    """The model's tensors, from the files' headers alone: nothing is read but a few KiB.

    Args:
        checkpoint_dir: Model directory.
        files: Names of the safetensors files; by default those that transformers would load.

    Returns:
        Exactly the tensors that config.json asks for.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is corrupt, or a tensor is missing, unexpected, of the wrong shape or
            not floating-point. The message names the file and the tensor.
    """
    config = read_config(checkpoint_dir)
    paths = weight_files(Path(checkpoint_dir), files)
    found = {name: info for path in paths for name, info in read_header(path).items()}
    found = {name: info for name, info in found.items() if not _is_ignored(name, config)}
    check_tensors(found, config, str(checkpoint_dir))
    return found


def read_tensors(found: Mapping[str, TensorInfo]) -> dict[str, torch.Tensor]:
    """The tensors themselves, memory-mapped without a copy; writes to them never reach the file."""
    tensors = {}
    for path in sorted({info.file for info in found.values()}):
        with safe_open(path, framework="pt") as file:
            for name, info in found.items():
                if info.file == path:
                    tensors[name] = file.get_tensor(name)
    return tensors


def check_tensors(found: Mapping[str, TensorInfo], config: PreTrainedConfig, where: str) -> None:
    """Checks that the tensors are exactly those of a model with this config.

    Args:
        found: Tensors by transformers' names.
        config: The model's config.
        where: What the error message calls the place where a tensor is missing.

    Raises:
        ValueError: If a tensor is missing, unexpected or of the wrong shape.
    """
    with torch.device("meta"):
        model = build_decoder(config, max_seq_len=1)
    expected = {hf_name(name): tuple(p.shape) for name, p in model.state_dict().items()}
    if missing := [name for name in expected if name not in found]:
        raise ValueError(f"{where}: tensor {missing[0]} is missing{and_more(missing)}")
    if unexpected := [name for name in found if name not in expected]:
        file = found[unexpected[0]].file
        raise ValueError(f"{file}: unexpected tensor {unexpected[0]}{and_more(unexpected)}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ValueError(
                f"{found[name].file}: tensor {name} has shape {list(found[name].shape)}, "
                f"but config.json asks for {list(shape)}"
            )


def weight_files(folder: Path, names: Iterable[str] | None = None) -> list[Path]:
    """The safetensors files of these names, or those that transformers would load.

    Raises:
        FileNotFoundError: If one is missing, or only pickled weights are there.
        ValueError: If the index is damaged, or a name is none of a file in the directory.
    """
    if names is None:
        names = [SINGLE_FILE] if (folder / SINGLE_FILE).exists() else _indexed_files(folder)
    paths = []
    for name in names:
        if Path(str(name)).name != name:
            raise ValueError(f"{folder}: {name!r} is no plain file name inside the directory")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: checkpoint file not found")
        paths.append(folder / name)
    return paths


def _indexed_files(folder: Path) -> list[str]:
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise ValueError(f"{index}: not a valid index: {type(err).__name__}: {err}") from err
    if any(folder.glob("*.bin")):
        raise FileNotFoundError(
            f"{folder}: only pickled PyTorch weights (.bin) are here; write safetensors once with "
            "transformers: AutoModelForCausalLM.from_pretrained(old).save_pretrained(new)"
        )
    raise FileNotFoundError(f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is here")


def read_header(path: Path, floats_only: bool = True) -> dict[str, TensorInfo]:
    """What a file's header says of its tensors.

    Raises:
        ValueError: If the file is no whole safetensors file, or with ``floats_only`` a tensor is no
            floating-point one.
    """
    header = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensor = file.get_slice(name)
                if floats_only and tensor.get_dtype() not in _FLOATS:
                    raise ValueError(
                        f"{path}: tensor {name} is stored as {tensor.get_dtype()}; "
                        "only floating-point weights are supported"
                    )
                header[name] = TensorInfo(path, tuple(tensor.get_shape()))
    except SafetensorError as err:
        raise ValueError(f"{path}: not a complete safetensors file: {err}") from err
    return header


def _is_ignored(name: str, config: PreTrainedConfig) -> bool:
    """Tensors that some files hold although the model has them from elsewhere."""
    tied_head = config.tie_word_embeddings and name == "lm_head.weight"
    return tied_head or name.endswith("rotary_emb.inv_freq")


def and_more(names: list[str]) -> str:
    """`` (and 2 more)`` behind the first of three names; nothing behind a single one."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
