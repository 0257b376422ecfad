"""Several ranks write one cache and train on it; a resumed run goes on with it."""

import pytest
from cache_ranks import cache_as_rank, train_as_rank
from kept import changed, logged
from omegaconf import OmegaConf
from ranks import on_ranks
from safetensors.torch import load_file

from kd_training import OneDevice, run
from kd_training.caching.run import cache_teacher

SMALL = {"cache": {"shard_mb": 1}, "batch_size": 2, "gradient_accumulation_steps": 1, "epochs": 2}


@pytest.fixture
def config(tiny_run, tmp_path, monkeypatch):
    """A config as plain data, whose cache comes in several files."""

    def make(overrides):
        cfg = changed(tiny_run.config(tmp_path), SMALL | overrides)
        return OmegaConf.to_container(cfg, resolve=True)

    return make


def files(directory):
    return {path.name: path.read_bytes() for path in directory.glob("*") if path.is_file()}


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_ranks_write_what_one_writes(sharding, config, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    cache_teacher(OmegaConf.create(config({"cache_dir": str(alone)})), OneDevice("cpu"))
    given = config({"cache_dir": str(together), "teacher_sharding": sharding})
    on_ranks(2, str(tmp_path / "meeting"), cache_as_rank, given)
    one, two = files(alone), files(together)
    assert one.keys() == two.keys()
    assert one["manifest.json"] == two["manifest.json"]
    if sharding == "none":
        assert one == two
        return
    for name in one:
        if name.endswith(".safetensors"):
            ours, theirs = load_file(together / name), load_file(alone / name)
            assert all((ours[n] - t).abs().max() < 1e-4 for n, t in theirs.items() if t.numel())


def test_two_ranks_learn_the_same_from_a_cache(config, tmp_path):
    cache = tmp_path / "cache"
    shared = {"batch_size": 1, "teacher_sharding": "none"}
    cache_teacher(OmegaConf.create(config(shared | {"cache_dir": str(cache)})), OneDevice("cpu"))
    runs = {}
    for name, more in {"live": {}, "kept": {"teacher_cache": str(cache)}}.items():
        directory = tmp_path / name
        given = config(shared | more | {"output_dir": str(directory)})
        on_ranks(2, str(tmp_path / f"meeting_{name}"), train_as_rank, given)
        runs[name] = logged(directory)
    assert runs["kept"] == runs["live"]


def test_a_resumed_run_goes_on_with_a_cache(config, tmp_path):
    cache = tmp_path / "cache"
    cache_teacher(OmegaConf.create(config({"cache_dir": str(cache)})), OneDevice("cpu"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with_cache = {"teacher_cache": str(cache)}
    run(OmegaConf.create(config({"output_dir": str(whole)})), OneDevice("cpu"))
    for epochs in (1, 2):
        more = {"output_dir": str(parts), "epochs": epochs, "resume_from_checkpoint": epochs > 1}
        run(OmegaConf.create(config(with_cache | more)), OneDevice("cpu"))
    assert logged(parts) == logged(whole)
