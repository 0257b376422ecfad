from pathlib import Path

import pytest
from kept import changed, logged

from kd_training import OneDevice, prepare
from kd_training.caching.run import cache_teacher
from kd_training.loop import Loop
from kd_training.train import load


@pytest.fixture(scope="module", autouse=True)
def _no_pictures():
    """A picture takes longer than the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd_training.loop.plot_losses", lambda *_: None)
        yield


@pytest.fixture
def teach(tiny_run, tmp_path):
    """Trains a small run, and returns what its log says but for speeds."""

    def train(overrides=None, where="out"):
        config = tiny_run.config(tmp_path)
        cfg = changed(config, {"output_dir": str(tmp_path / where)} | (overrides or {}))
        run = prepare(cfg, OneDevice("cpu"))
        loaded = load(run)
        Loop(run, loaded.step, loaded.state).run()
        return logged(Path(cfg.output_dir))

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
