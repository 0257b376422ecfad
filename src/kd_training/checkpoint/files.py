"""Checkpoints to resume from: complete, checked by hash, and free of pickled objects.

``recipe_state/step_<n>/`` holds the ranks' shares of all tensors as safetensors, everything else in
``state.json``, and a ``manifest.json`` with the size and hash of each file, written last. An empty
file ``exported`` is added once the student that the state still owed has been exported.
"""

import hashlib
import json
import shutil
import warnings
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor

from hf_models import atomic_directory
from hf_models.directories import partial_path
from kd_training.checkpoint.facts import FACTS_FILE, write_facts
from kd_training.checkpoint.tensors import plain
from kd_training.placement.one_device import Placement
from kd_training.placement.writing import WriteError, on_all_ranks

# One process without ranks is what OneDevice is; torch says so at every save.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

STATE_DIR = "recipe_state"
_MANIFEST = "manifest.json"
_EXPORTED = "exported"


class Checkpoints:
    """The checkpoints of one run: those that it found when it went on, and those that it writes.

    No other one is ever removed.

    Args:
        output_dir: The run's directory, as the run has taken it over.
        keep_last_n: How many stay.
        newest: The intact one that the run goes on from; None for a run that starts.
    """

    def __init__(self, output_dir: Path, keep_last_n: int, newest: Path | None = None) -> None:
        self._output_dir, self._keep_last_n, self.newest = output_dir, keep_last_n, newest
        self._own = {path for _, path in _checkpoints(output_dir)}

    def save(
        self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], placement: Placement
    ) -> None:
        """Write ``step_<step>``, which is then complete or absent; then remove older ones.

        Args:
            step: Optimizer steps done.
            tensors: Sharded or whole, by name; of a whole one every rank has the same.
            facts: JSON values; the same on every rank.
            placement: Where the tensors live.

        Raises:
            WriteError: If it cannot be written; earlier checkpoints stay as they are.
        """
        target = self._output_dir / STATE_DIR / f"step_{step}"
        try:
            _write(target, tensors, facts, placement)
        except WriteError as err:
            others = "" if self.newest is None else "; earlier ones are untouched"
            raise WriteError(f"checkpoint {target} could not be written: {err}{others}") from err
        self._own.add(target)
        self.newest = target
        if placement.rank == 0:
            _remove_others(self._output_dir, step, self._keep_last_n, self._own)

    def way_on(self) -> str:
        """What a person can do after a file could not be written."""
        if self.newest is None:
            return "free some space, then start anew: there is no checkpoint to resume from yet"
        return f"free some space, then set resume_from_checkpoint=true to go on from {self.newest}"


def _write(
    target: Path, tensors: dict[str, Tensor], facts: dict[str, Any], placement: Placement
) -> None:
    first = placement.rank == 0
    together = partial(on_all_ranks, placement)
    replacement = atomic_directory(target) if first else nullcontext(partial_path(target))
    with ExitStack() as stack:
        folder = together(lambda: stack.enter_context(replacement))
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        alone = placement.world_size == 1
        together(
            lambda: dcp.save(
                plain(tensors),
                storage_writer=writer,
                process_group=placement.group,
                no_dist=alone,
            )
        )
        together(lambda: _write_facts_and_manifest(folder, facts) if first else None)
        together(stack.close)  # now it has its name


def _write_facts_and_manifest(folder: Path, facts: dict[str, Any]) -> None:
    write_facts(folder, facts)
    (folder / _MANIFEST).write_text(json.dumps(_describe_files(folder), indent=1))


def note_export(checkpoint: Path) -> None:
    """Note beside a checkpoint that the student which it owes has been exported."""
    with suppress(OSError):  # a second export would write the same
        (checkpoint / _EXPORTED).touch()


def has_exported(checkpoint: Path) -> bool:
    """Whether the student that a checkpoint may owe has been exported."""
    return (checkpoint / _EXPORTED).exists()


def newest_state(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and a warning for each newer one that is damaged.

    Returns:
        None as the first where ``output_dir`` has no checkpoint at all.

    Raises:
        ValueError: If there are checkpoints and all are damaged.
    """
    damaged: list[str] = []
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


def _checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Steps and folders, the newest first."""
    found = []
    for path in (output_dir / STATE_DIR).glob("step_*"):
        number = path.name.removeprefix("step_")
        if number.isdigit():
            found.append((int(number), path))
    return sorted(found, reverse=True)


def _remove_others(output_dir: Path, step: int, keep_last_n: int, own: set[Path]) -> None:
    """Leave the newest ones up to ``step``: later ones are what this run has gone back from."""
    found = [(number, path) for number, path in _checkpoints(output_dir) if path in own]
    kept = [path for number, path in found if number <= step][:keep_last_n]
    for _, path in found:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


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
