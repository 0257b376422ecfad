"""What a run reads must not be what it moves away or writes over."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kd_config.schema import RunConfig

_READ = ("model", "teacher_model", "tokenizer", "teacher_tokenizer", "checkpointer",
         "teacher_checkpointer", "dataset", "dataset_val")  # fmt: skip


def check_sources(config: RunConfig, replaced: Iterable[Path]) -> None:
    """Refuse models, tokenizers and data that lie in what the run replaces, links followed.

    Args:
        config: The run's config.
        replaced: Files and folders that it will move or write over.

    Raises:
        ValueError: If one does; the message names its key.
    """
    endangered = {place: path for path in replaced for place in _places(path)}
    for key in _READ:
        node = getattr(config, key)
        value = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for name, text in _texts(value, key):
            places = _places(Path(text))
            inside = {p for place in places for p in (place, *place.parents)} & endangered.keys()
            if inside:
                raise ValueError(
                    f"config: {name} {text} lies in {endangered[inside.pop()]}, which this run "
                    "moves to previous/ or writes over; set another output_dir"
                )


def _texts(node: Any, name: str) -> Iterator[tuple[str, str]]:
    """Each text in a node, by its dotted key, except what names code or output."""
    if isinstance(node, str):
        yield name, node
    elif isinstance(node, dict):
        for key, value in node.items():
            if key not in ("_component_", "output_dir"):
                yield from _texts(value, f"{name}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _texts(value, f"{name}[{i}]")


def _places(path: Path) -> set[Path]:
    """The path as it is written, without links, and without links above the last name."""
    absolute = Path(os.path.abspath(path))
    return {absolute, Path(os.path.realpath(path)),
            Path(os.path.realpath(absolute.parent), absolute.name)}  # fmt: skip
