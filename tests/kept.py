"""Configs with other keys, and what runs have logged, for tests of kept answers."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


def changed(config: Any, overrides: dict[str, Any]) -> DictConfig:
    """A config with keys replaced, by dotted name."""
    cfg = OmegaConf.create(config)
    for key, value in overrides.items():
        OmegaConf.update(cfg, key, value, force_add=True, merge=False)
    return cfg


def logged(output_dir: Path) -> list[dict[str, Any]]:
    """What a run's log says but for speeds."""
    lines = (output_dir / "logs" / "metrics.jsonl").read_text().splitlines()
    records = map(json.loads, lines)
    return [{k: v for k, v in one.items() if k != "tokens_per_second"} for one in records]
