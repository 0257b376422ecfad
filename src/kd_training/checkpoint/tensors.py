"""The tensors of a checkpoint, in a form that any number of ranks can read."""

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from kd_training.placement.one_device import Placement
from kd_training.placement.writing import first_failure


def load_tensors(checkpoint: Path, tensors: dict[str, Tensor], placement: Placement) -> None:
    """Fill ``tensors`` in place, each rank its own shard, however many ranks had saved.

    Raises:
        ValueError: If a tensor is missing, without a place, or of another shape.
    """
    reader, parts = dcp.HuggingFaceStorageReader(str(checkpoint)), plain(tensors)
    try:
        unused = sorted(reader.read_metadata().state_dict_metadata.keys() - parts.keys())
        if unused:
            raise ValueError(f"{unused[0]} has no place in it")
        dcp.load(
            parts,
            storage_reader=reader,
            process_group=placement.group,
            no_dist=placement.world_size == 1,
        )
    except (CheckpointException, ValueError) as err:
        why = " ".join(str(first_failure(err)).split())
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} does not fit this config: {why}; model, "
            "layer_mapping and optimizer must be those of the run that saved it"
        ) from err


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same memory as ordinary or sharded tensors: an 8-bit one is several, by name."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if hasattr(tensor, "__tensor_flatten__") and not isinstance(tensor, DTensor):
            parts = {f"{name}.{part}": getattr(tensor, part) for part in _inner(tensor)}
            found |= plain(parts)
        else:
            found[name] = tensor
    return found


def _inner(tensor: Any) -> list[str]:
    names, _ = tensor.__tensor_flatten__()
    return names
