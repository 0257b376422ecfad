import pytest
import tiny
from omegaconf import OmegaConf

from kd_training import OneDevice, Trainer


@pytest.fixture
def make_trainer(tiny_run, tmp_path):
    """Builds a loaded trainer of a small run, with overrides by dotted key."""

    def make(overrides=None, student="student"):
        cfg = OmegaConf.create(tiny_run.config(tmp_path))
        directory = str(tiny_run.directories[student])
        cfg.model.checkpoint_dir = cfg.checkpointer.checkpoint_dir = directory
        for key, value in (overrides or {}).items():
            OmegaConf.update(cfg, key, value, force_add=True)
        trainer = Trainer(cfg, OneDevice("cpu"))
        trainer.directories = tiny_run.directories | {"student": directory}
        trainer.load()
        return trainer

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    return tiny.make_tiny_run(tmp_path_factory.mktemp("tiny"))
