"""One file of a store: documents after one another, complete or not there.

Shapes: n documents, R positions of a place, all documents together.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_models.directories import give_usual_mode
from kd_teachers.store.documents import Key

KEYS = "keys"  # [n, 2] int64: see `kd_data.tasks.keys`


def ends_of(place: str) -> str:
    """Name of the tensor [n] int64 that tells where each document's positions end."""
    return f"ends.{place}"


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file under a name of its own first; nobody ever sees half of it.

    Raises:
        OSError: If it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(dict(tensors), partial)
    except SafetensorError as err:  # a full disk among others
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: could not be written: {err}") from err
    give_usual_mode(partial)
    handle = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    partial.replace(path)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file of a cache, of which as much is read as is asked for.

    Raises:
        ValueError: If it is no whole safetensors file, or lacks a tensor that is asked for.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as err:
        raise ValueError(
            f"{path}: not a complete file of a cache ({err}); delete it, and run "
            "kd_cache_teacher again: it makes what is missing"
        ) from err


class Shard:
    """A file that is read where it is asked for, memory-mapped.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no whole safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as file:
            self._ends = {
                name: file.get_tensor(name).numpy()
                for name in file.keys()  # noqa: SIM118 (not a mapping)
                if name.startswith("ends.")
            }
            self.keys: np.ndarray = file.get_tensor(KEYS).numpy().copy()

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        with opened(self.path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def documents(self) -> list[Key]:
        """Its documents' keys, in their order."""
        return [(first, second) for first, second in self.keys.tolist()]

    def rows(self, name: str, place: str, document: int) -> Tensor:
        """A document's rows of a tensor, [L, numbers], still on disk until they are looked at."""
        ends = self._ends[ends_of(place)]
        start = 0 if document == 0 else int(ends[document - 1])
        return self._tensors[name][start : int(ends[document])]

    def longest(self) -> int:
        """Positions of all documents, each at the place where it has most."""
        lengths = [np.diff(ends, prepend=0) for ends in self._ends.values()]
        return int(np.max(lengths, axis=0).sum())
