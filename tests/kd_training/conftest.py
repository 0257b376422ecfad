from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torchtune.training import OffloadActivations

from kd_config.check import check_config, typed
from kd_config.schema import RunConfig
from kd_teachers import live_models
from kd_training import OneDevice, Run, prepare
from kd_training.checkpoint.run_state import RunState
from kd_training.loop import Loop
from kd_training.preflight.estimates import estimate_memory
from kd_training.step import OptimizerStep
from kd_training.train import load


@dataclass
class LoadedRun:
    """A prepared run with its weights, the step and the state that `train` makes."""

    run: Run
    step: OptimizerStep
    state: RunState
    directories: dict[str, Path]

    config: RunConfig

    def estimate(self):
        """The plan's memory."""
        models = self.run.student, live_models(self.run.teacher).values()
        dtype = self.run.records.export.dtype
        return estimate_memory(self.config, *models, dtype, self.run.placement)

    def train(self) -> None:
        Loop(self.run, self.step, self.state).run()

    def batch(self, indices, unlabelled=0):
        """A micro-batch of these training samples, whose first positions have no target."""
        loader = self.run.source.loader
        samples = [loader.dataset[i] for i in indices]
        if unlabelled:
            kept = range(unlabelled + 1, 10**6)  # a position's target is the next label
            samples = [
                s | {"labels": [v if i in kept else -100 for i, v in enumerate(s["labels"])]}
                for s in samples
            ]
        return loader.collate_fn(samples)

    def counts(self, batch):
        """Each term's positions."""
        objective = self.run.objective
        return self.by_name(objective.counts(batch).tolist())

    def parts(self, batch):
        """Each term's sum."""
        objective = self.run.objective
        return self.by_name(objective(batch, torch.ones(len(objective.terms))).parts.tolist())

    def by_name(self, values):
        names = [term.name for term in self.run.objective.terms]
        return dict(zip(names, values, strict=True))

    def term(self, name):
        return next(term for term in self.run.objective.terms if term.name == name)


@pytest.fixture
def load_run(tiny_run):
    """Prepares and loads the run of a config."""

    def load_(cfg):
        run = prepare(cfg, OneDevice("cpu"))
        loaded = load(run)
        directories = tiny_run.directories | {"student": cfg.model.checkpoint_dir}
        return LoadedRun(run, loaded.step, loaded.state, directories, typed(check_config(cfg)))

    return load_


@pytest.fixture
def make_run(tiny_run, tmp_path, load_run):
    """Prepares and loads a small run, with overrides by dotted key."""

    def make(overrides=None, student="student"):
        cfg = OmegaConf.create(tiny_run.config(tmp_path))
        directory = str(tiny_run.directories[student])
        cfg.model.checkpoint_dir = cfg.checkpointer.checkpoint_dir = directory
        for key, value in (overrides or {}).items():
            OmegaConf.update(cfg, key, value, force_add=True)
        return load_run(cfg)

    return make


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
