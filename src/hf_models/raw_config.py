"""config.json as it stands."""

import json
from pathlib import Path
from typing import Any

from hf_models.missing import missing


def read_raw_config(checkpoint_dir: str | Path) -> dict[str, Any]:
    """The contents of a config.json, for edits that keep every field that is not touched.

    Raises:
        FileNotFoundError: If the directory or its config.json does not exist.
        ValueError: If the file holds no JSON object.
    """
    folder = Path(checkpoint_dir)
    if not folder.is_dir():
        raise FileNotFoundError(missing(folder, "model directory"))
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; a Hugging Face model directory has one")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ValueError(f"{path}: not valid JSON: {err}") from err
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: holds no JSON object")
    return raw
