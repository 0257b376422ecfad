"""What a bf16 run learns, against the same run in fp32."""

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from test_step import micro_batches_of
from transformers import AutoModelForCausalLM

from kd_training import OneDevice, run

BF16, FP32 = torch.bfloat16, torch.float32
STOCHASTIC = {"_component_": "torchao.optim._AdamW", "lr": 1e-5, "bf16_stochastic_round": True}


@pytest.fixture
def make_config(tiny_run, tmp_path):
    """A small run in bf16; ``full``: of all weights instead of LoRA's."""

    def make(full=False, **overrides):
        cfg = OmegaConf.create(tiny_run.config(tmp_path))
        if full:
            student = cfg.model.checkpoint_dir
            cfg.model = {"_component_": "hf_models.decoder", "checkpoint_dir": student}
        cfg.update({"dtype": "bf16", "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-5}})
        cfg.update(overrides)
        return cfg

    return make


@pytest.fixture
def load(make_config, load_run):
    def load(**overrides):
        return load_run(make_config(**overrides))

    return load


def learn(loaded, num_steps):
    """Each trained weight's change by steps on the same samples again and again, in one vector."""
    trained = loaded.step.parameters
    before = [p.detach().double() for p in trained]
    batches = micro_batches_of(loaded, [0, 1], [2, 3])
    for number in range(num_steps):
        loaded.step(batches, number + 1)
    pairs = zip(before, trained, strict=True)
    return torch.cat([(after.detach().double() - start).flatten() for start, after in pairs])


def adam(lr):
    return {"_component_": "torch.optim.AdamW", "lr": lr}


@pytest.mark.parametrize(
    ("setup", "num_steps"),
    [({"full": True, "optimizer": adam(1e-5)}, 6), ({"optimizer": adam(2e-5)}, 200)],
    ids=["all weights", "LoRA"],
)
def test_small_steps_are_as_large_as_in_fp32(load, setup, num_steps):
    """Of weights in bf16 six steps of 1e-5 had moved one in 66; half of LoRA's never moved."""
    ours, exact = (learn(load(**setup, dtype=dtype), num_steps) for dtype in ("bf16", "fp32"))
    moved, should = ((change != 0).double().mean().item() for change in (ours, exact))
    print(f"moved {moved:.4f} of {should:.4f}, {ours.abs().mean():.3g} of {exact.abs().mean():.3g}")
    assert moved > 0.99 * should > 0.9
    assert ours.abs().mean().item() == pytest.approx(exact.abs().mean().item(), rel=0.03)
    assert torch.nn.functional.cosine_similarity(ours, exact, dim=0) > 0.9


@pytest.mark.parametrize("full", [True, False], ids=["all weights", "LoRA"])
def test_what_is_trained_is_fp32_and_nothing_else(load, full):
    loaded = load(full=full, layer_projection={"mode": "always"})
    batches = micro_batches_of(loaded, [0, 1], [2, 3])
    loaded.step.optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(p.grad for p in loaded.step.parameters)
    )
    gradients = []
    loaded.step(batches, 1)
    trained = {id(p) for p in loaded.step.parameters}
    for parameter in loaded.run.student.module.parameters():
        assert parameter.dtype == (FP32 if id(parameter) in trained else BF16)
    assert {p.dtype for p in loaded.run.teacher.model.module.parameters()} == {BF16}
    states = loaded.step.optimizer.state.values()
    kept = [*gradients, *loaded.step.parameters, *(s["exp_avg_sq"] for s in states)]
    assert {tensor.dtype for tensor in kept} == {FP32}
    assert len(kept) == 3 * len(trained)


@torch.compiler.set_stance("force_eager")  # torchao's optimizers compile themselves, for long
def test_stochastic_rounding_keeps_bf16_and_moves_on_average(load):
    """A step moves a weight by 0 or by its last bit, and by the step's size on average."""
    loaded = load(full=True, optimizer=STOCHASTIC)
    ours = learn(loaded, 6)
    assert {p.dtype for p in loaded.run.student.module.parameters()} == {BF16}
    exact = learn(load(full=True, dtype="fp32"), 6)
    assert (ours != 0).double().mean() < 0.5
    along = (ours * exact.sign()).mean().item()
    print(f"moved {(ours != 0).double().mean():.4f}, {along:.3g} of {exact.abs().mean():.3g}")
    assert along == pytest.approx(exact.abs().mean().item(), rel=0.1)


@torch.compiler.set_stance("force_eager")
def test_lora_is_fp32_whatever_the_optimizer_rounds(load):
    loaded = load(optimizer=STOCHASTIC)
    assert {p.dtype for p in loaded.step.parameters} == {FP32}
    assert learn(loaded, 2).abs().max() > 0


def run_and_read(cfg, tmp_path, monkeypatch):
    """The exported weights, and the masters that the last checkpoint holds."""
    monkeypatch.setattr("kd_training.loop.plot_losses", lambda *_: None)
    run(cfg, OneDevice("cpu"))
    (state,) = (tmp_path / "out" / "recipe_state").glob("step_*")
    shards = [load_file(path) for path in state.glob("*.safetensors")]
    masters = {k.removeprefix("model.student."): v for s in shards for k, v in s.items()}
    return load_file(tmp_path / "out" / "epoch_0" / "model.safetensors"), masters


def test_all_weights_are_exported_in_bf16_and_resumed_in_fp32(make_config, tmp_path, monkeypatch):
    exported, masters = run_and_read(make_config(full=True), tmp_path, monkeypatch)
    assert {tensor.dtype for tensor in exported.values()} == {BF16}
    kept = masters["norm.scale"]
    assert kept.dtype == FP32
    assert not torch.equal(kept, kept.bfloat16().float())
    assert torch.equal(exported["model.norm.weight"], kept.bfloat16())


def test_lora_is_merged_from_fp32_and_exported_as_it_is_kept(make_config, tmp_path, monkeypatch):
    exported, masters = run_and_read(make_config(), tmp_path, monkeypatch)
    assert {tensor.dtype for tensor in exported.values()} == {BF16}
    adapter = load_file(tmp_path / "out" / "epoch_0" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {FP32}
    name = "layers.1.mlp.w2"
    lora_a, lora_b = (masters[f"{name}.{part}.weight"] for part in ("lora_a", "lora_b"))
    hf_name = "model.layers.1.mlp.down_proj"
    assert torch.equal(adapter[f"base_model.model.{hf_name}.lora_A.weight"], lora_a)
    student = make_config().model.checkpoint_dir
    base = AutoModelForCausalLM.from_pretrained(student, dtype=BF16)
    loaded = PeftModel.from_pretrained(base, tmp_path / "out" / "epoch_0" / "adapter").state_dict()
    assert torch.equal(loaded[f"base_model.model.{hf_name}.lora_A.default.weight"], lora_a)
    weight = load_file(f"{student}/model.safetensors")[f"{hf_name}.weight"].bfloat16().double()
    exact = weight + 8 / 4 * lora_b.double() @ lora_a.double()
    off = (exported[f"{hf_name}.weight"].double() - exact).abs() / exact.abs()
    assert off.max() < 2**-8  # one rounding


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("full", [True, False], ids=["all weights", "LoRA"])
def test_masters_and_their_copies_are_in_the_memory_estimate(load, full, checkpointing):
    loaded = load(full=full, enable_activation_checkpointing=checkpointing)
    trained = sum(p.numel() for p in loaded.step.parameters)
    frozen = sum(p.numel() for p in loaded.run.student.module.parameters()) - trained
    layers = list(loaded.run.student.module.layers)
    copied = trained
    if checkpointing:  # one of the two layers
        copied -= sum(p.numel() for p in layers[0].parameters() if p.requires_grad)
    memory = loaded.estimate()
    assert memory.student == 2 * frozen + (4 + 4 + 8) * trained + 2 * copied
    assert memory.teacher == 2 * sum(
        p.numel() for p in loaded.run.teacher.model.module.parameters()
    )
