"""The tokens that end a text."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_models.raw_config import read_raw_config

_GENERATION, _KEY = "generation_config.json", "eos_token_id"


def end_tokens(directory: str | Path) -> frozenset[int]:
    """What a model's directory ends a text with: as generation_config.json says, else config.json.

    Raises:
        FileNotFoundError: If the directory or its config.json does not exist.
        ValueError: If a file holds no JSON object.
    """
    raw = read_raw_config(directory)
    named: Any = _generation(Path(directory)).get(_KEY)
    if named is None:
        named = raw.get(_KEY, raw.get("text_config", {}).get(_KEY))
    return frozenset(named if isinstance(named, list) else () if named is None else (named,))


def write_end_tokens(directory: Path, ids: Iterable[int]) -> None:
    """Have whoever generates with a directory stop at each of ``ids``."""
    written = _generation(directory) | {_KEY: sorted(ids)}
    path = directory / _GENERATION
    path.write_text(json.dumps(written, indent=2, ensure_ascii=False), encoding="utf-8")


def _generation(directory: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        raw = json.loads((directory / _GENERATION).read_text(encoding="utf-8"))
        return raw if isinstance(raw, dict) else {}
    return {}
