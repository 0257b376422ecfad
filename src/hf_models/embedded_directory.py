"""What the embedded models share: directories that a download is made into, or already was."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hf_models.directories import atomic_directory


def holds_model(output_dir: Path, files: Sequence[str]) -> bool:
    """Whether every file is there and the weights file has the length its header announces."""
    if not all((output_dir / name).is_file() for name in files):
        return False
    try:
        with safe_open(output_dir / "model.safetensors", framework="pt"):
            return True
    except SafetensorError:
        return False


@contextmanager
def new_model_directory(output_dir: Path, required_bytes: int) -> Iterator[tuple[Path, Path]]:
    """A directory to write a model into, which becomes ``output_dir``, and one for scratch files.

    Args:
        output_dir: Absent or empty.
        required_bytes: What everything takes on the disk at the same time.

    Raises:
        OSError: If ``output_dir`` holds something, or the disk has less room.
    """
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise FileExistsError(
            f"{output_dir} exists but is not the complete embedded model: "
            "remove it or choose another --output"
        )
    with atomic_directory(output_dir) as directory:
        _require_free_space(directory, required_bytes)
        scratch = directory / "download"
        scratch.mkdir()
        yield directory, scratch
        shutil.rmtree(scratch)


def _require_free_space(directory: Path, required_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < required_bytes:
        raise OSError(
            f"{directory.resolve()} has {free / 1e9:.1f} GB free; "
            f"the embedded model needs {required_bytes / 1e9:.1f} GB"
        )
