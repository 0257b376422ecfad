"""What a config's dataset nodes say, before anything is built from them."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

FILE_READERS = ("json", "csv", "text", "parquet", "arrow")


def nodes_of(value: DictConfig | ListConfig | None) -> list[Any]:
    """The nodes of a dataset key: one, those of a list, or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, ListConfig) else [value]


def is_packed(value: DictConfig | ListConfig | None) -> bool:
    """Whether any dataset of the key fills rows with several samples."""
    return any(node.get("packed") for node in nodes_of(value))


def packed_key(config: Any) -> str | None:
    """The first of a run's dataset keys that `is_packed`; None for none."""
    keys = ("dataset", "dataset_val")
    return next((key for key in keys if is_packed(getattr(config, key))), None)


def check_dataset_node(key: str, node: DictConfig) -> None:
    """Check what every builder of datasets would stumble over later, or not at all.

    Raises:
        ValueError: If ``node`` is to be streamed, or its files are none.
    """
    if node.get("streaming"):
        raise ValueError(
            f"config: {key}.streaming must be left out: samples are looked up by their number; "
            "their files are memory-mapped, so that they may be larger than memory all the same"
        )
    files = node.get("data_files")
    if not (files is None or isinstance(files, str | ListConfig | DictConfig)):
        raise ValueError(f"config: {key}.data_files is {files!r}; it must be a path, or a list")
    for path in files if isinstance(files, ListConfig) else [files]:
        if isinstance(path, str) and Path(path).is_dir():
            raise ValueError(f"config: {key}.data_files: {path} is a directory; name the files")
    # Without files these readers take whatever lies below the current folder.
    if node.get("source") in FILE_READERS and not (files or node.get("data_dir")):
        raise ValueError(f"config: {key}.data_files must be set for source: {node.source}")
