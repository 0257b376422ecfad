"""Runs in less memory: a base in NF4, an optimizer with 8-bit states."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torchao.optim import AdamW8bit
from torchao.optim.subclass_8bit import OptimState8bit
from transformers import AutoModelForCausalLM

OPTIMIZER = "optimizer._component_=torchao.optim"


def totals(tmp_path):
    lines = (tmp_path / "out" / "logs" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["total"] for line in lines]


def test_qlora_learns_and_exports(tune_run, config_file, tiny_run, tmp_path):
    overrides = ["model.quantize_base=true", "epochs=8", "enable_activation_checkpointing=true"]
    code, _, err = tune_run("kd_single_device", config_file, *overrides)
    assert code == 0, err
    losses = totals(tmp_path)
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "epoch_7")
    before = load_file(tiny_run.directories["student"] / "model.safetensors")
    after = exported.state_dict()
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert not torch.equal(
        after["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize(
    "quantization", ["nf4", "{_component_: torchao.quantization.Int8WeightOnlyConfig}"]
)
def test_a_quantised_teacher_is_nearly_the_same_teacher(
    tune_run, config_file, tmp_path, quantization
):
    kd = []
    for value in ("null", quantization):
        overrides = [f"teacher_quantization={value}", "max_steps_per_epoch=1"]
        code, _, err = tune_run("kd_single_device", config_file, *overrides)
        assert code == 0, err
        log = (tmp_path / "out" / "logs" / "metrics.jsonl").read_text()
        kd.append(json.loads(log.splitlines()[0])["kd"])
    assert 1e-4 < abs(kd[1] - kd[0]) < 0.02 * kd[0]


def test_adamw_with_8_bit_states(tune_run, config_file, tmp_path, monkeypatch):
    """With a scheduler: this optimizer wants its learning rate as a tensor."""
    kinds = set()
    step = AdamW8bit.step

    def watched_step(self, *args):
        result = step(self, *args)
        kinds.update(type(state["exp_avg"]) for state in self.state.values())
        return result

    monkeypatch.setattr(AdamW8bit, "step", watched_step)
    config = yaml.safe_load(config_file.read_text())
    # Two shapes to compile for, each just large enough for 8 bits.
    config["model"] |= {"lora_attn_modules": ["q_proj"], "apply_lora_to_mlp": False}
    config["model"] |= {"lora_rank": 128, "lora_alpha": 128}
    schedule = "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"
    config["lr_scheduler"] = {"_component_": schedule, "num_warmup_steps": 1}
    config_file.write_text(yaml.safe_dump(config))
    code, _, err = tune_run("kd_single_device", config_file, f"{OPTIMIZER}.AdamW8bit", "epochs=4")
    assert code == 0, err
    losses = totals(tmp_path)
    assert losses[-1] < losses[0]
    assert kinds == {OptimState8bit}


@pytest.mark.skipif(torch.cuda.is_available(), reason="it works where there is a GPU")
def test_offloading_the_optimizer_needs_a_gpu(tune_run, config_file):
    code, _, err = tune_run("kd_single_device", config_file, f"{OPTIMIZER}.CPUOffloadOptimizer")
    assert code != 0
    assert "error: config: optimizer: CPU" in err
