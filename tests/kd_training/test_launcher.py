"""The launcher quotes the rank that made the mistake, not one that failed in waiting for it."""

import time

import pytest
import torch.distributed as dist
from omegaconf import OmegaConf
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from kd_training import many_devices
from kd_training.placement.launcher import last_words


@pytest.fixture
def error_file(tmp_path, monkeypatch):
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    return path


def test_a_mistake_comes_before_what_fails_in_the_same_second(error_file, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    with pytest.raises(ValueError, match="broken"), last_words():
        raise ValueError("sample 7\nis broken")
    files = ["none", str(error_file)]
    failures = {rank: ProcessFailure(rank, 1, 1, file) for rank, file in enumerate(files)}
    rank, failure = ChildFailedError("run", failures).get_first_failure()
    assert (rank, failure.message) == (1, "sample 7 is broken")


def test_the_last_words_are_there_when_the_others_notice(
    error_file, monkeypatch, tiny_run, tmp_path
):
    def fail(*_):
        raise ValueError("sample 7 is broken")

    left = []
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda *_: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(error_file.exists()))
    monkeypatch.setattr(many_devices, "make_sharded", lambda _: None)
    monkeypatch.setattr(many_devices, "run", fail)
    with pytest.raises(ValueError, match="sample 7"):
        many_devices.run_sharded(OmegaConf.create(tiny_run.config(tmp_path)))
    assert left == [True]
