"""Directories that are complete or absent."""

import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# What belongs to a model besides its config, weights and tokenizer.
_COMPANIONS = ("generation_config.json", "LICENSE*", "NOTICE*")
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates",
)
# Some versions of transformers write into these where a directory was.
_SETTINGS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")


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


def recover(folder: Path, targets: str) -> None:
    """Undo what killed processes left half done in ``folder``, of targets with such names.

    A directory that had been moved away for its successor is put back; half-written ones go.
    """
    for kind in ("previous", "partial"):
        for leftover in folder.glob(f".{targets}.{kind}"):
            _recover(leftover.with_name(leftover.name.removeprefix(".").removesuffix(f".{kind}")))


def _recover(target: Path) -> None:
    put_back(target)
    for leftover in (partial_path(target), previous_path(target)):
        shutil.rmtree(leftover, ignore_errors=True)


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
    folder = path if path.is_dir() else path.parent
    probe = folder / f".mode_of_new_files_{os.getpid()}"  # ranks may write here side by side
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
    _recover(target)
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
    """Copies generation config and licence from one model directory to another."""
    _copy(source, target, _COMPANIONS)


def copy_tokenizer(source: str | Path, target: Path) -> None:
    """Copies a tokenizer's files, chat templates included, from one directory to another."""
    _copy(source, target, _TOKENIZER_FILES)


def portable_path(path: str | Path) -> str | None:
    """``path`` as another machine may read it: below the current folder; None if it is not."""
    path, here = Path(path), Path.cwd()
    if not path.is_absolute():
        return str(path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else None


def without_machine_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a JSON file without those that are absolute paths."""
    return {key: value for key, value in settings.items() if not _is_machine_path(key, value)}


def _is_machine_path(key: str, value: Any) -> bool:
    # A token may be a slash.
    return isinstance(value, str) and value.startswith("/") and not key.endswith("_token")


def _copy(source: str | Path, target: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in Path(source).glob(pattern):
            copy = shutil.copytree if path.is_dir() else _copy_file
            copy(path, target / path.name)


def _copy_file(path: Path, target: Path) -> None:
    shutil.copyfile(path, target)
    if path.name not in _SETTINGS:
        return
    with suppress(ValueError):  # no JSON: whoever reads it will say so
        settings = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(settings, dict) and (kept := without_machine_paths(settings)) != settings:
            target.write_text(json.dumps(kept, indent=2, ensure_ascii=False), encoding="utf-8")
