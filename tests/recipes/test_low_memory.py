"""Runs in less memory: weights in few bits, 8-bit optimizer states, activations kept elsewhere."""

import json
import shutil

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from resuming import check_same, checkpoints
from safetensors.torch import load_file
from torchao.optim import AdamW8bit
from torchao.optim.subclass_8bit import OptimState8bit
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM

from hf_models import HFCheckpointer, decoder, load_weights, quantize
from kd_training.placement.offloading import check_offloading

# Quantisations as a config says them.
INT8, FLOAT8 = (
    f"{{_component_: torchao.quantization.{kind.__name__}}}"
    for kind in (Int8WeightOnlyConfig, Float8WeightOnlyConfig)
)
# The quantised teacher's logits, ‖error‖ / ‖logits‖. Its weights are off by 0.6 % (int8), 2.4 %
# (float8) and 9 % (NF4) in the same norm; six random layers make about six times as much of it.
LOGIT_ERRORS = {
    INT8: (Int8WeightOnlyConfig(), 0.02, 0.06),
    FLOAT8: (Float8WeightOnlyConfig(), 0.08, 0.25),
    "nf4": ("nf4", 0.25, 0.75),
}
OPTIMIZER = "optimizer._component_=torchao.optim"


@pytest.fixture
def _no_weights(monkeypatch):
    """Nothing may be read: what is refused is refused before."""
    monkeypatch.setattr(HFCheckpointer, "load_checkpoint", lambda _: pytest.fail("too late"))


@pytest.fixture
def one_rank(monkeypatch):
    """Makes this process what the launcher would start."""

    def start():
        monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
        variables = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


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


@pytest.mark.parametrize("quantization", LOGIT_ERRORS)
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


@pytest.mark.parametrize("quantization", LOGIT_ERRORS)
@torch.no_grad()
def test_logit_error_of_a_quantised_teacher(tiny_run, quantization):
    """A real teacher's KL is bounded in tests/hf_models/test_hf_quantization.py."""
    directory = tiny_run.directories["teacher"]
    with torch.device("meta"):
        teacher = decoder(directory)
    load_weights(
        teacher, HFCheckpointer(directory).load_checkpoint()["model"], "cpu", torch.float32
    )
    exact = teacher(tokens := torch.arange(300)[None, :64])
    config, least, most = LOGIT_ERRORS[quantization]
    quantize(teacher, config)
    assert least < (teacher(tokens) - exact).norm() / exact.norm() < most


def test_bf16_is_nearly_fp32_and_exported_as_bf16(tune_run, config_file, tmp_path):
    first = {}
    for dtype in ("fp32", "bf16"):
        code, _, err = tune_run("kd_single_device", config_file, f"dtype={dtype}", "epochs=4")
        assert code == 0, err
        first[dtype], *_, last = totals(tmp_path)
        assert last < 0.95 * first[dtype]
    assert first["bf16"] == pytest.approx(first["fp32"], rel=0.01)
    exported = load_file(tmp_path / "out" / "epoch_3" / "model.safetensors")
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}


def test_checkpointed_activations_change_nothing(tune_run, config_file, tmp_path):
    for name, value in (("without", "false"), ("with", "true")):
        code, _, err = tune_run(
            "kd_single_device",
            config_file,
            f"output_dir={tmp_path / name}",
            f"enable_activation_checkpointing={value}",
        )
        assert code == 0, err
    check_same(tmp_path / "with", tmp_path / "without")


@pytest.mark.usefixtures("_no_weights")
@pytest.mark.parametrize("recipe", ["kd_single_device", "kd_distributed"])
def test_offloading_activations_needs_a_gpu(tune_run, config_file, tmp_path, one_rank, recipe):
    if recipe == "kd_distributed":
        one_rank()
    overrides = ["enable_activation_offloading=true", "enable_activation_checkpointing=true"]
    code, _, err = tune_run(recipe, config_file, *overrides)
    assert code == 1
    assert "config: enable_activation_offloading moves activations from a GPU" in err
    assert "device is cpu; leave it false" in err
    assert not (tmp_path / "out").exists()


def test_offloading_activations_needs_checkpointing():
    cfg = OmegaConf.create({"device": "cuda", "enable_activation_checkpointing": False})
    with pytest.raises(ValueError, match="needs enable_activation_checkpointing: true"):
        check_offloading(cfg)


@pytest.fixture(params=["force_eager", pytest.param("default", marks=pytest.mark.slow)])
def _stance(request):
    """Inductor compiles this optimizer's step for half a minute, which eager code does as well."""
    with torch.compiler.set_stance(request.param):
        yield


@pytest.mark.usefixtures("_stance")
def test_adamw_with_8_bit_states_learns_and_resumes(tune_run, config_file, tmp_path, monkeypatch):
    """With a scheduler: this optimizer wants its learning rate as a tensor."""
    kinds = set()
    step = AdamW8bit.step

    def watched_step(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
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
    run = ("kd_single_device", config_file, f"{OPTIMIZER}.AdamW8bit", "epochs=4")
    code, _, err = tune_run(*run, "save_every_n_steps=3", "keep_last_n=9")
    assert code == 0, err
    losses = totals(tmp_path)
    assert losses[-1] < losses[0]
    assert kinds == {OptimState8bit}

    output = tmp_path / "out"
    shutil.copytree(output, tmp_path / "whole")
    for number in checkpoints(output):
        if number > 3:
            shutil.rmtree(output / "recipe_state" / f"step_{number}")
    for epoch in (1, 2, 3):
        shutil.rmtree(output / f"epoch_{epoch}")
    code, out, err = tune_run(*run, "resume_from_checkpoint=true")
    assert code == 0, err
    assert "step_3" in out
    check_same(output, tmp_path / "whole")


@pytest.mark.usefixtures("_no_weights")
def test_an_optimizer_that_cannot_be_resumed_is_refused(tune_run, config_file, tmp_path):
    code, _, err = tune_run("kd_single_device", config_file, f"{OPTIMIZER}.CPUOffloadOptimizer")
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: config: optimizer: torchao.optim.CPUOffloadOptimizer cannot be")
    assert "use torchao.optim.AdamW8bit, or kd_distributed with fsdp_cpu_offload: true" in last
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_no_weights")
@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_shares_of_weights_are_not_rounded_at_random(
    tune_run, config_file, tmp_path, one_rank, dry_run
):
    one_rank()
    optimizer = [f"{OPTIMIZER}._AdamW", "optimizer.bf16_stochastic_round=true"]
    code, _, err = tune_run("kd_distributed", config_file, *optimizer, f"dry_run={dry_run}")
    assert code == 1
    wanted = "error: config: optimizer.bf16_stochastic_round rounds whole weights, not the shares"
    assert wanted in err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()
