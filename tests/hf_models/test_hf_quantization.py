"""Quantised teachers: which weights change, by how much, and what that does to the logits."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig
from torchao.utils import get_model_size_in_bytes
from transformers import AutoTokenizer

from hf_models import decoder, head_weight, lora_decoder, quantize
from hf_models.quantization import dequantized

pytestmark = pytest.mark.filterwarnings("ignore:Config Deprecation")

CONFIGS = {
    "nf4": "nf4",
    "int8": Int8WeightOnlyConfig(),
    "int8-v2": Int8WeightOnlyConfig(version=2),
    "float8": Float8WeightOnlyConfig(),
}
# Largest |W - Q(W)| in units of `scales`: half of the widest step between levels. NF4's levels are
# at most 0.304 apart and its scales are themselves rounded; float8 e4m3 has 3 bits of mantissa.
ROUNDING = {"nf4": 0.304 / 2 + 0.01, "int8": 0.5 / 127, "int8-v2": 0.5 / 127, "float8": 2**-4}
PROSE = (
    "The capital of France is Paris, and the capital of Italy is Rome. Water boils at one hundred "
    "degrees. A week has seven days, and a year has twelve months."
)


def scales(weight: torch.Tensor, name: str) -> torch.Tensor:
    """What a rounding error is proportional to: a block's or a row's maximum, or the value."""
    if name == "float8":
        return weight.abs() + weight.abs().amax(1, keepdim=True) / 2**8
    if name.startswith("int8"):
        return weight.abs().amax(1, keepdim=True)
    blocks = weight.reshape(-1, 64).abs().amax(1, keepdim=True)
    return blocks.expand(-1, 64).reshape(weight.shape)


def plain(weight: torch.Tensor) -> torch.Tensor:
    return dequantized(weight) if "NF4" in type(weight).__name__ else weight.dequantize()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_only_linear_layers_inside_the_decoder_layers_change(make_hf, load, tokens, family, name):
    directory, _ = make_hf(family)
    before, model = load(decoder, directory), load(decoder, directory)
    unquantized = before(tokens)

    quantize(model, CONFIGS[name])

    head, changed = head_weight(model), set()
    assert type(head) is nn.Parameter
    assert torch.equal(head, head_weight(before))
    reference = dict(before.named_parameters())
    for key, parameter in model.named_parameters():
        old = reference[key]
        if type(parameter) is nn.Parameter:
            assert torch.equal(parameter, old)
            continue
        changed.add(key)
        assert not parameter.requires_grad
        new = plain(parameter)
        assert ((new - old).abs() <= ROUNDING[name] * scales(old, name) + 1e-6).all()
        old.copy_(new)
    linears = {f"{key}.weight" for key, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert changed == linears - {"output.weight"}
    # the reference now computes with the same values, unpacked
    logits = model(tokens)
    torch.testing.assert_close(logits, before(tokens), atol=1e-3, rtol=1e-3)
    assert (logits - unquantized).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "factor", "least_kl", "most_kl"),
    [
        ("int8", 3.9, 1e-3, 0.02),
        ("float8", 3.9, 5e-3, 0.06),
        pytest.param("nf4", 7.6, 0.1, 0.8, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_size_and_logit_error_of_a_real_teacher(
    embedded_model_dir, load, name, factor, least_kl, most_kl
):
    model = load(decoder, embedded_model_dir, max_seq_len=64)
    tokens = AutoTokenizer.from_pretrained(embedded_model_dir)(PROSE, return_tensors="pt").input_ids
    exact = model(tokens).log_softmax(-1)
    size = get_model_size_in_bytes(model.layers)
    quantize(model, CONFIGS[name])
    assert size / get_model_size_in_bytes(model.layers) > factor
    kl = (exact.exp() * (exact - model(tokens).log_softmax(-1))).sum(-1).mean()
    assert least_kl < kl < most_kl


@torch.no_grad()
def test_nf4_of_two_real_layers(embedded_model_dir, load):
    model = load(decoder, embedded_model_dir, max_seq_len=64).bfloat16()
    model.layers = model.layers[:2]
    exact = model(torch.arange(100, 164)[None])
    size = get_model_size_in_bytes(model.layers)
    quantize(model, "nf4")
    assert size / get_model_size_in_bytes(model.layers) > 3.8  # 3.87 without norms and rope
    error = model(torch.arange(100, 164)[None]) - exact
    assert 0.003 < error.square().mean() / exact.var() < 0.03


def test_the_model_moves_layer_by_layer(make_hf, load):
    directory, _ = make_hf("qwen3", tie_word_embeddings=True)
    model = load(decoder, directory)
    quantize(model, Int8WeightOnlyConfig(), device="meta")
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"meta"}


@pytest.mark.parametrize(
    ("config", "sizes", "message"),
    [
        ("int3", {}, "'int3': use nf4 or one of torchao's configs"),
        (8, {}, "8: use nf4 or"),
        ("nf4", {"hidden_size": 30}, "480 weights cannot be cut into blocks of 64"),
        (Int4WeightOnlyConfig(), {}, "Int4WeightOnlyConfig: it leaves every layer as it is"),
        (Int4WeightOnlyConfig(group_size=8), {}, "quantization Int4WeightOnlyConfig: "),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(make_hf, load, config, sizes, message):
    directory, _ = make_hf("qwen3", **sizes)
    with pytest.raises(ValueError, match=message) as error:
        quantize(load(decoder, directory), config)
    assert "\n" not in str(error.value)


def test_a_model_with_lora_is_refused(make_hf, load):
    directory, _ = make_hf("llama")
    with pytest.raises(ValueError, match="quantize_base: true"):
        quantize(load(lora_decoder, directory, ["q_proj"]), "nf4")


def test_a_sharded_model_is_refused(make_hf, load):
    directory, _ = make_hf("llama")
    model = load(decoder, directory)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"sharded.*teacher_sharding: none"):
            quantize(model, "nf4")
    finally:
        dist.destroy_process_group()
