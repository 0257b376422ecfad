"""Directories that are complete or absent."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What belongs to a model besides its config and weights.
_COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates",
    "LICENSE*",
    "NOTICE*",
)


def partial_path(target: str | Path) -> Path:
    """Where `atomic_directory` builds ``target``."""
    target = Path(target).absolute()
    return target.with_name(f".{target.name}.partial")


def previous_path(target: Path) -> Path:
    """Where `atomic_directory` moves what is at ``target`` while it takes its place."""
    return target.with_name(f".{target.name}.previous")


def put_back(target: Path) -> None:
    """Undo a replacement that ended after the old directory had been moved away."""
    previous = previous_path(target)
    if previous.exists() and not target.exists():
        previous.rename(target)


def flush_to_disk(directory: Path) -> None:
    """Make sure that the files of a directory, and their names, survive a loss of power."""
    for path in (*directory.rglob("*"), directory):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def give_usual_mode(path: Path) -> None:
    """Give a file, or all files below a directory, the mode that the umask gives to new ones.

    safetensors writes into a private temporary file first, whose mode 0600 it leaves as it is.
    """
    probe = (path if path.is_dir() else path.parent) / ".mode_of_new_files"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            file.chmod(mode)


@contextmanager
def atomic_directory(target: str | Path) -> Iterator[Path]:
    """A temporary sibling of ``target`` to write into, which takes its place at the end.

    After an error ``target`` is as it was. An existing directory is moved away only when the new
    one is complete. What a killed process left behind is removed by the next call.
    """
    target = Path(target).absolute()
    temporary = partial_path(target)
    previous = previous_path(target)
    put_back(target)
    for leftover in (temporary, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        give_usual_mode(temporary)
        flush_to_disk(temporary)
        if target.exists():
            target.rename(previous)
        temporary.rename(target)
    except BaseException:
        put_back(target)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def copy_companions(source: str | Path, target: Path) -> None:
    """Copies tokenizer files, generation config and licence from one model directory to another."""
    for pattern in _COMPANIONS:
        for path in Path(source).glob(pattern):
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, target / path.name)
