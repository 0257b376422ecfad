import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kd_training import OneDevice, prepare
from kd_training.caching.run import cache_teacher
from kd_training.loop import Loop
from kd_training.train import load


def changed(config, overrides):
    """A config with keys replaced, by dotted name."""
    cfg = OmegaConf.create(config)
    for key, value in overrides.items():
        OmegaConf.update(cfg, key, value, force_add=True, merge=False)
    return cfg


@pytest.fixture
def teach(tiny_run, tmp_path):
    """Trains a small run, and returns what its log says but for speeds."""

    def train(overrides=None, where="out"):
        config = tiny_run.config(tmp_path)
        cfg = changed(config, {"output_dir": str(tmp_path / where)} | (overrides or {}))
        run = prepare(cfg, OneDevice("cpu"))
        loaded = load(run)
        Loop(run, loaded.step, loaded.state).run()
        lines = Path(cfg.output_dir, "logs", "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return [{k: v for k, v in one.items() if k != "tokens_per_second"} for one in records]

    return train


@pytest.fixture
def keep(tiny_run, tmp_path):
    """Keeps the answers of a small run's teacher, and returns where."""

    def cache(overrides=None, where="cache"):
        directory = tmp_path / where
        config = tiny_run.config(tmp_path)
        cfg = changed(config, {"cache_dir": str(directory)} | (overrides or {}))
        cache_teacher(cfg, OneDevice("cpu"))
        return directory

    return cache
