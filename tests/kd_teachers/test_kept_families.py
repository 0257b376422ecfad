"""Kept answers of encoders, encoder-decoders and other decoders: the live run, bit for bit."""

from pathlib import Path

import pytest
from families import family_config
from kept import changed, logged

from kd_training import OneDevice, prepare
from kd_training.caching.run import cache_teacher
from kd_training.loop import Loop
from kd_training.train import load


def trained(cfg):
    run = prepare(cfg, OneDevice("cpu"))
    loaded = load(run)
    Loop(run, loaded.step, loaded.state).run()
    return logged(Path(cfg.output_dir))


@pytest.mark.parametrize("family", ["bert", "t5", "bart", "gpt2", "gemma2", "bloom"])
def test_a_family_learns_the_same_from_kept_answers(family, directories, tmp_path):
    config = family_config(tmp_path, family, *directories(family))
    live = trained(changed(config, {"output_dir": str(tmp_path / "live"), "epochs": 2}))
    cache = str(tmp_path / "cache")
    cache_teacher(changed(config, {"cache_dir": cache}), OneDevice("cpu"))
    kept = {"output_dir": str(tmp_path / "kept"), "epochs": 2, "teacher_cache": cache}
    assert trained(changed(config, kept)) == live
    assert any("/s" in name for name in live[0]), "layers were matched"
