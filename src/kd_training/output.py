"""The run's directory: what it holds, and that a second run loses nothing of the first."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from torchtune import training

from hf_models import HFCheckpointer, merged_state_dict
from kd_training.placement import Placement

_RUN_FILES = ("epoch_*", "best", "logs", "recipe_state", "config.yaml")
BEST = "best"


def check_writable(output_dir: Path) -> None:
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
            f"config: output_dir {output_dir} cannot be written ({nearest}: {err.strerror}); "
            "choose another"
        ) from err


def nearest_existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def start_output(cfg: DictConfig, output_dir: Path, resumed: bool) -> Path | None:
    """Make the directory and its config.yaml; an earlier run's files move to ``previous/<n>``.

    The config is kept as it is written: nothing of the environment is in it. A resumed run goes on
    among its own files.

    Returns:
        Where the earlier run's files are now; None if there were none.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    earlier = [path for pattern in _RUN_FILES for path in output_dir.glob(pattern)]
    previous = None
    if earlier and not resumed:
        kept = [int(p.name) for p in output_dir.glob("previous/*") if p.name.isdigit()]
        previous = output_dir / "previous" / str(max(kept, default=0) + 1)
        previous.mkdir(parents=True)
        for path in earlier:
            shutil.move(path, previous / path.name)
    # A full disk must not cost a resumed run the config that it goes on with.
    written = output_dir / ".config.yaml.partial"
    OmegaConf.save(cfg, written)
    written.replace(output_dir / "config.yaml")
    return previous


def write_summary(output_dir: Path, summary: dict[str, float]) -> None:
    """Keep the run's totals."""
    (output_dir / "logs" / "summary.json").write_text(json.dumps(summary, indent=2))


def save_student(
    student: Any,
    checkpointer: Any,
    placement: Placement,
    epoch: int,
    dtype: torch.dtype,
    *,
    last: bool,
    adapter_only: bool = False,
    best: bool = False,
) -> Path | None:
    """Write the merged student (and its adapter) through the run's checkpointer.

    Returns:
        The directory, where it is one of ours and this rank has written it.

    Raises:
        OSError: If it cannot be written; an earlier one at its place stays as it is.
    """
    state = placement.full_state_dict(student)
    if placement.rank != 0:
        return None
    merged, adapter, adapter_config = merged_state_dict(student, state)
    checkpoint: dict[str, Any] = {
        training.MODEL_KEY: {name: tensor.to(dtype) for name, tensor in merged.items()}
    }
    if adapter is not None:
        checkpoint |= {training.ADAPTER_KEY: adapter, training.ADAPTER_CONFIG: adapter_config}
    # Only our own checkpointer can write a folder that is not an epoch's.
    where = {"dirname": BEST} if best else {}
    try:
        checkpointer.save_checkpoint(
            checkpoint,
            epoch=epoch,
            intermediate_checkpoint=not last,
            adapter_only=adapter_only,
            **where,
        )
    except (OSError, SafetensorError) as err:
        raise OSError(
            f"{'the best student' if best else f'the student of epoch {epoch}'} could not be "
            f"written: {err}; free some space, then set resume_from_checkpoint=true"
        ) from err
    if not isinstance(checkpointer, HFCheckpointer) or checkpointer.output_dir is None:
        return None
    return checkpointer.output_dir / (BEST if best else f"epoch_{epoch}")


def keeps_best(checkpointer: Any) -> bool:
    """Whether the checkpointer can keep a best student beside the epochs' ones."""
    return isinstance(checkpointer, HFCheckpointer)
