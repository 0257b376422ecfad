import runpy
import sys

import pytest
from omegaconf import OmegaConf


@pytest.fixture(scope="module", autouse=True)
def _no_pictures():
    """A picture takes longer than the run; a run in a process of its own shows that it draws it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kd_training.loop.plot_losses", lambda *_: None)
        yield


@pytest.fixture
def tune_run(monkeypatch, capfd):
    """Runs a recipe as `tune run NAME --config FILE key=value ...` does, in this process."""

    def run(name, config_file, *overrides):
        argv = ["tune", "run", name, "--config", str(config_file), *overrides]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("torchtune._cli.tune", run_name="__main__")
        output = capfd.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run


@pytest.fixture
def config_file(tiny_run, tmp_path):
    """A complete config of a small run, as a file."""
    path = tmp_path / "run.yaml"
    OmegaConf.save(OmegaConf.create(tiny_run.config(tmp_path)), path)
    return path
