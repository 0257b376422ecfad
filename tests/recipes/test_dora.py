"""A DoRA student through the recipe: interrupted, exported, beside a base in NF4."""

import shutil

import pytest
import torch
import yaml
from resuming import check_same, checkpoints, records
from safetensors.torch import load_file

ADAPTER = "epoch_1/adapter/adapter_model.safetensors"


@pytest.mark.parametrize("quantize_base", [False, True])
def test_an_interrupted_run_ends_as_the_whole_one(tune_run, config_file, tmp_path, quantize_base):
    """The files of step 3 of 4 are put back; magnitudes go on, they do not start anew."""
    config = yaml.safe_load(config_file.read_text()) | {"epochs": 2, "save_every_n_steps": 3}
    config["model"] |= {"use_dora": True, "lora_dropout": 0.2, "quantize_base": quantize_base}
    config_file.write_text(yaml.safe_dump(config))
    code, _, err = tune_run("kd_single_device", config_file)
    assert code == 0, err
    output = tmp_path / "out"
    totals = [r["total"] for r in records(output)]
    assert totals[-1] < totals[0]
    shutil.move(output, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", output)
    shutil.rmtree(output / "recipe_state" / "step_4")
    shutil.rmtree(output / "epoch_1")
    assert checkpoints(output) == [3]
    assert tune_run("kd_single_device", config_file, "resume_from_checkpoint=true")[0] == 0
    check_same(output, tmp_path / "whole")

    trained = load_file(output / ADAPTER)
    magnitudes = {name for name in trained if name.endswith("lora_magnitude_vector")}
    assert len(magnitudes) == 2 * 7
    before = load_file(config["model"]["checkpoint_dir"] + "/model.safetensors")
    for name in magnitudes:
        base = before[
            name.removeprefix("base_model.model.").replace("lora_magnitude_vector", "weight")
        ]
        assert not torch.allclose(trained[name], base.norm(dim=1), rtol=1e-3), name
