"""What a rank does in tests of caches."""

from typing import Any

from omegaconf import OmegaConf

from kd_config.check import check_config
from kd_training import run
from kd_training.caching.run import cache_teacher
from kd_training.many_devices import make_sharded


def cache_as_rank(_: int, config: dict[str, Any]) -> None:
    """Keep a teacher's answers, as one of several."""
    cfg = check_config(OmegaConf.create(config))
    cache_teacher(cfg, make_sharded(cfg))


def train_as_rank(_: int, config: dict[str, Any]) -> None:
    """Train, as one of several."""
    cfg = check_config(OmegaConf.create(config))
    run(cfg, make_sharded(cfg))
