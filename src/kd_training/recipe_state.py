"""Checkpoints to resume from: complete, checked by hash, and free of pickled objects.

``recipe_state/step_<n>/`` holds the ranks' shares of all tensors as safetensors, everything else in
``state.json``, and a ``manifest.json`` with the size and hash of each file, written last.
"""

import hashlib
import json
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_models import atomic_directory
from hf_models.directories import partial_path, put_back
from kd_training.facts import FACTS_FILE, write_facts
from kd_training.placement import Placement

# One process without ranks is what OneDevice is; torch says so at every save.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

STATE_DIR = "recipe_state"
_MANIFEST = "manifest.json"


def save_state(
    output_dir: Path,
    step: int,
    tensors: dict[str, Tensor],
    facts: dict[str, Any],
    placement: Placement,
    keep_last_n: int,
) -> Path:
    """Write ``step_<step>``, which is afterwards complete or absent; then remove older ones.

    Args:
        output_dir: The run's directory.
        step: Optimizer steps done.
        tensors: Sharded or whole, by name; of a whole one every rank has the same.
        facts: JSON values; the same on every rank.
        placement: Where the tensors live.
        keep_last_n: How many checkpoints stay.

    Raises:
        OSError: If it cannot be written; earlier checkpoints stay as they are.
    """
    target = output_dir / STATE_DIR / f"step_{step}"
    first = placement.rank == 0
    try:
        with atomic_directory(target) if first else nullcontext(partial_path(target)) as folder:
            placement.wait()  # now the folder is there
            writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
            dcp.save(_plain(tensors), storage_writer=writer, no_dist=placement.world_size == 1)
            if first:
                write_facts(folder, facts)
                (folder / _MANIFEST).write_text(json.dumps(_describe_files(folder), indent=1))
    except (CheckpointException, OSError) as err:
        why = _first_failure(err)
        raise OSError(
            f"checkpoint {target} could not be written: {why}; earlier ones are untouched; "
            "free some space or mend output_dir, then set resume_from_checkpoint=true"
        ) from err
    placement.wait()  # now it has its name
    if first:
        _remove_others(output_dir, step, keep_last_n)
    return target


def newest_state(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and a warning for each newer one that is damaged.

    Returns:
        None as the first where ``output_dir`` has no checkpoint at all.

    Raises:
        ValueError: If there are checkpoints and all are damaged.
    """
    damaged: list[str] = []
    _put_back(output_dir)
    for _, path in _checkpoints(output_dir):
        damage = _damage(path)
        if damage is None:
            return path, damaged
        damaged.append(f"checkpoint {path} is damaged ({damage}); trying the one before")
    if damaged:
        raise ValueError(
            f"resume_from_checkpoint: no checkpoint in {output_dir / STATE_DIR} is intact "
            f"({damage}); set resume_from_checkpoint=false to start anew"
        )
    return None, []


def load_tensors(checkpoint: Path, tensors: dict[str, Tensor], placement: Placement) -> None:
    """Fill ``tensors`` in place, each rank its own shard, however many ranks had saved.

    Raises:
        ValueError: If a tensor is missing, without a place, or of another shape.
    """
    reader, plain = dcp.HuggingFaceStorageReader(str(checkpoint)), _plain(tensors)
    try:
        unused = sorted(reader.read_metadata().state_dict_metadata.keys() - plain.keys())
        if unused:
            raise ValueError(f"{unused[0]} has no place in it")
        dcp.load(plain, storage_reader=reader, no_dist=placement.world_size == 1)
    except (CheckpointException, ValueError) as err:
        why = " ".join(str(_first_failure(err)).split())
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} does not fit this config: {why}; model, "
            "layer_mapping and optimizer must be those of the run that saved it"
        ) from err


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same memory as ordinary or sharded tensors: an 8-bit one is several, by name."""
    plain = {}
    for name, tensor in tensors.items():
        if is_traceable_wrapper_subclass(tensor) and not isinstance(tensor, DTensor):
            parts = {f"{name}.{part}": getattr(tensor, part) for part in _inner(tensor)}
            plain |= _plain(parts)
        else:
            plain[name] = tensor
    return plain


def _inner(tensor: Any) -> list[str]:
    names, _ = tensor.__tensor_flatten__()
    return names


def _first_failure(err: BaseException) -> BaseException:
    return next(iter(err.failures.values()))[0] if isinstance(err, CheckpointException) else err


def _checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Steps and folders, the newest first."""
    found = []
    for path in (output_dir / STATE_DIR).glob("step_*"):
        number = path.name.removeprefix("step_")
        if number.isdigit():
            found.append((int(number), path))
    return sorted(found, reverse=True)


def _remove_others(output_dir: Path, step: int, keep_last_n: int) -> None:
    """Leave the newest ones up to ``step``: later ones are what this run has gone back from."""
    found = _checkpoints(output_dir)
    kept = [path for number, path in found if number <= step][:keep_last_n]
    for _, path in found:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _put_back(output_dir: Path) -> None:
    """Undo replacements of checkpoints that were killed halfway."""
    for path in (output_dir / STATE_DIR).glob(".step_*.previous"):
        put_back(path.with_name(path.name.removeprefix(".").removesuffix(".previous")))


def _describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.iterdir() if path.name != _MANIFEST)
    return {p.name: {"size": p.stat().st_size, "sha256": _sha256(p)} for p in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is as it was written."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        for name in dict.fromkeys([FACTS_FILE, *manifest]):
            path, wanted = folder / name, manifest[name]
            if path.stat().st_size != wanted["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {wanted['size']}"
            if _sha256(path) != wanted["sha256"]:
                return f"{name} was altered"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        return f"{_MANIFEST}: {' '.join(str(err).split())}"
    return None
