"""LoRA beside a base in NF4: loading, gradients, merging and export, against plain weights."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torchao.dtypes.nf4tensor import NF4Tensor
from torchtune.modules.peft import get_adapter_params, set_trainable_params
from torchtune.training import ADAPTER_CONFIG, ADAPTER_KEY, MODEL_KEY
from transformers import AutoModelForCausalLM

from hf_models import HFCheckpointer, load_weights, lora_decoder, merged_state_dict
from hf_models.quantization import dequantized

ALL = ["q_proj", "k_proj", "v_proj", "output_proj"]
PLACES = {"all": (ALL, True), "one": (["v_proj"], False)}


@pytest.fixture
def load_pair(make_hf, load, randomize_lora):
    """A QLoRA model, and a plain LoRA model that holds the same values unpacked."""

    def load_pair(family, places=("v_proj",), mlp=False, **sizes):
        directory, _ = make_hf(family, **sizes)
        options = {"lora_rank": 3, "lora_alpha": 7}
        quantized = load(lora_decoder, directory, places, mlp, quantize_base=True, **options)
        plain = load(lora_decoder, directory, places, mlp, **options)
        for model in (quantized, plain):
            randomize_lora(model)
            set_trainable_params(model, get_adapter_params(model))
        values = {name: dequantized(t) for name, t in quantized.state_dict().items()}
        plain.load_state_dict(values)
        return directory, quantized, plain

    return load_pair


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("places", PLACES)
def test_layers_hold_nf4_and_the_rest_is_plain(make_hf, places, dtype):
    directory, _ = make_hf("qwen2")
    weights = HFCheckpointer(directory).load_checkpoint()[MODEL_KEY]
    with torch.device("meta"):
        model = lora_decoder(directory, *PLACES[places], quantize_base=True)
    load_weights(model, weights, "cpu", dtype)
    packed = {n for n, p in model.named_parameters() if isinstance(p, NF4Tensor)}
    matrices = {n for n, t in weights.items() if n.startswith("layers.") and t.dim() == 2}
    assert packed == matrices
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("places", PLACES)
def test_logits_and_gradients_are_those_of_the_unpacked_values(load_pair, tokens, family, places):
    _, quantized, plain = load_pair(family, *PLACES[places])
    for model in (quantized, plain):
        model(tokens).square().mean().backward()
    with torch.no_grad():
        torch.testing.assert_close(quantized(tokens), plain(tokens), atol=5e-5, rtol=1e-4)
    for (name, ours), theirs in zip(quantized.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None) == (".lora_" not in name), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_transformers_opens_the_merged_model(load_pair, tokens, tmp_path, family, tied):
    directory, model, _ = load_pair(family, ALL, True, tie_word_embeddings=tied)
    merged, adapter, adapter_config = merged_state_dict(model)
    assert not any(isinstance(tensor, NF4Tensor) for tensor in merged.values())
    state = {MODEL_KEY: merged, ADAPTER_KEY: adapter, ADAPTER_CONFIG: adapter_config}
    HFCheckpointer(directory, output_dir=tmp_path / "out").save_checkpoint(state, epoch=0)
    exported, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out" / "epoch_0", output_loading_info=True
    )
    assert not any(info.values()), info
    torch.testing.assert_close(exported(tokens).logits, model(tokens), atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_merging_a_gathered_state_leaves_the_model_in_nf4(load_pair):
    _, model, plain = load_pair("qwen3", ["q_proj"])
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    merged, _, _ = merged_state_dict(model, state)
    expected, _, _ = merged_state_dict(plain)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())
    assert isinstance(model.layers[0].attn.q_proj.weight, NF4Tensor)


def test_a_real_model_takes_half_a_byte_per_weight(embedded_model_dir):
    """Its widths do not fit NF4's usual blocks of 256 scales."""
    with torch.device("meta"):
        model = lora_decoder(embedded_model_dir, ["q_proj"], quantize_base=True)
    for name in ("attn.q_proj", "attn.k_proj", "mlp.w1"):
        weight = model.layers[0].get_submodule(name).weight
        parts = [getattr(weight, part) for part in weight.__tensor_flatten__()[0]]
        assert sum(p.numel() * p.element_size() for p in parts) / weight.numel() < 0.52


def test_widths_that_nf4_cannot_take(make_hf):
    directory, _ = make_hf("qwen3", hidden_size=30)
    with pytest.raises(ValueError, match="480 weights cannot be cut into blocks of 64"):
        lora_decoder(directory, ["q_proj"], quantize_base=True)


def test_a_sharded_base_is_refused(make_hf):
    directory, _ = make_hf("llama")
    weights = HFCheckpointer(directory).load_checkpoint()[MODEL_KEY]
    with torch.device("meta"):
        model = lora_decoder(directory, ["q_proj"], quantize_base=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = {name: distribute_tensor(tensor, mesh) for name, tensor in weights.items()}
        with pytest.raises(ValueError, match="in NF4 cannot be sharded; run it on one device"):
            model.load_state_dict(sharded, strict=False, assign=True)
    finally:
        dist.destroy_process_group()
