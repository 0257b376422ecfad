from functools import partial

import pytest
import tiny
import torch
from omegaconf import OmegaConf
from torchtune.training import OffloadActivations

from kd_config.check import check_config
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
        trainer = Trainer(check_config(cfg), OneDevice("cpu"))
        trainer.directories = tiny_run.directories | {"student": directory}
        trainer.load()
        return trainer

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    return tiny.make_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def fetched(monkeypatch):
    """Lets activations be offloaded on a CPU: copied, and copied back. The shapes of the latter.

    All that is not as on a GPU: no streams, no pinned memory, and "cuda" is here.
    """
    shapes, to = [], torch.Tensor.to

    def to_cuda(tensor, *args, **kwargs):
        if args[:1] != ("cuda",):
            return to(tensor, *args, **kwargs)
        shapes.append(tuple(tensor.shape))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "to", to_cuda)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda: None)
    offload = partial(OffloadActivations, use_streams=False, use_pin_memory=False)
    monkeypatch.setattr("kd_training.placement.offloading.OffloadActivations", offload)
    monkeypatch.setattr("kd_training.build.check_offloading", lambda _: None)
    return shapes
