"""The run's directory: what it holds, and that a second run loses nothing of the first."""

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hf_models.directories import recover
from kd_training.checkpoint.files import STATE_DIR
from kd_training.placement.one_device import Placement

BEST, EPOCH = "best", "epoch"  # the kinds of students
_RUN_FILES = ("epoch_*", BEST, "logs", STATE_DIR, "config.yaml")
_CACHED_S = 60.0  # for so long may a network's file system say that a new file is not there


def check_writable(output_dir: Path, key: str = "output_dir") -> None:
    """Make sure that ``output_dir`` can be made and written to, without making it.

    Raises:
        ValueError: If it, or the nearest folder above it that exists, takes no file.
    """
    nearest = nearest_existing(output_dir)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as err:
        raise ValueError(
            f"config: {key} {output_dir} cannot be written ({nearest}: {err.strerror}); "
            "choose another"
        ) from err


def check_shared(output_dir: Path, placement: Placement, key: str = "output_dir") -> None:
    """Make sure that all ranks mean the same folder: rank 0 writes a file and all look for it.

    Raises:
        ValueError: If one does not see it.
    """
    folder = nearest_existing(output_dir)
    first = placement.rank == 0
    with tempfile.NamedTemporaryFile(dir=folder) if first else nullcontext() as token:
        path = placement.gather(folder / Path(token.name).name if token else None)[0]
        seen = placement.gather(_appears(path))
    blind = [str(rank) for rank, sees in enumerate(seen) if not sees]
    if blind:
        raise ValueError(
            f"config: {key} {output_dir}: what rank 0 writes there is not seen by rank "
            f"{', '.join(blind)}, but every rank writes its part; choose a folder on a file system "
            "that all nodes share"
        )


def _appears(path: Path) -> bool:
    end = time.monotonic() + _CACHED_S
    while not path.exists():
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
    return True


def nearest_existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def mend(output_dir: Path) -> None:
    """Put back what a killed run was replacing, and remove what it had half written."""
    recover(output_dir / STATE_DIR, "step_*")
    recover(output_dir, BEST)
    recover(output_dir, "epoch_*")
    for student in (output_dir / BEST, *output_dir.glob("epoch_*")):
        recover(student, "adapter")


def replaced_files(output_dir: Path, epochs: int, progress: Mapping[str, Any] | None) -> list[Path]:
    """What is there already that a run will move to ``previous/`` or write over.

    Args:
        output_dir: The run's directory.
        epochs: How many epochs it trains.
        progress: How far the run is that it goes on with; None for a new one.
    """
    if progress is None:
        return _run_files(output_dir)
    first_epoch = progress["epoch"] - (progress["owed"] == EPOCH)
    names = [BEST, *(f"epoch_{epoch}" for epoch in range(first_epoch, epochs))]
    return [output_dir / name for name in names if (output_dir / name).exists()]


def _run_files(output_dir: Path) -> list[Path]:
    return [path for pattern in _RUN_FILES for path in output_dir.glob(pattern)]


def start_output(output_dir: Path, config: str, resumed: bool) -> Path | None:
    """Make the directory and its config.yaml; an earlier run's files move to ``previous/<n>``.

    A resumed run goes on among its own files.

    Returns:
        Where the earlier run's files are now; None if there were none.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    earlier = _run_files(output_dir)
    previous = None
    if earlier and not resumed:
        kept = [int(p.name) for p in output_dir.glob("previous/*") if p.name.isdigit()]
        previous = output_dir / "previous" / str(max(kept, default=0) + 1)
        previous.mkdir(parents=True)
        for path in earlier:
            shutil.move(path, previous / path.name)
    # A full disk must not cost a resumed run the config that it goes on with.
    written = output_dir / ".config.yaml.partial"
    written.write_text(config, encoding="utf-8")
    written.replace(output_dir / "config.yaml")
    return previous


def write_summary(output_dir: Path, summary: dict[str, float]) -> None:
    """Keep the run's totals."""
    (output_dir / "logs" / "summary.json").write_text(json.dumps(summary, indent=2))
