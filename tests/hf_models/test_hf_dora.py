"""DoRA: where it starts, its layer against torchtune's, and its export against PEFT's."""

import json

import pytest
import torch
from peft import PeftModel
from torchtune.models.llama3_2 import lora_llama3_2
from torchtune.modules.peft import DoRALinear as TorchtunesDoRALinear
from torchtune.modules.peft import get_adapter_params, set_trainable_params
from torchtune.training import ADAPTER_CONFIG, ADAPTER_KEY, MODEL_KEY
from transformers import AutoModelForCausalLM

from hf_models import (
    HFCheckpointer,
    decoder,
    head_weight,
    load_weights,
    lora_decoder,
    merged_state_dict,
)
from hf_models.quantization import dequantized
from hf_models.torchtune_decoder.dora import DoRALinear

ALL = ["q_proj", "k_proj", "v_proj", "output_proj"]
DORA = {"use_dora": True, "lora_rank": 3, "lora_alpha": 7}
CLOSE = {"atol": 5e-5, "rtol": 1e-4}


@pytest.fixture
def load_dora(load, randomize_lora):
    """A DoRA model with random matrices, and magnitudes up to half as long again or as short."""

    def load_dora(directory, *args, **kwargs):
        model = load(lora_decoder, directory, *args, **DORA, **kwargs)
        randomize_lora(model)
        for name, parameter in model.named_parameters():
            if name.endswith("magnitude"):
                parameter.data *= torch.linspace(0.5, 1.5, len(parameter))
        set_trainable_params(model, get_adapter_params(model))
        return model

    return load_dora


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("quantize_base", [False, True])
@torch.no_grad()
def test_it_starts_as_the_base(make_hf, load, tokens, family, quantize_base):
    directory, reference = make_hf(family, tie_word_embeddings=quantize_base)
    places = (ALL, True, not quantize_base)
    model = load(lora_decoder, directory, *places, quantize_base=quantize_base, **DORA)
    base = load(lora_decoder, directory, *places, quantize_base=quantize_base)
    assert torch.equal(model(tokens), base(tokens))
    if not quantize_base:
        torch.testing.assert_close(model(tokens), reference(tokens).logits, atol=2e-5, rtol=1e-5)
    names = {name.rpartition(".")[0] for name in get_adapter_params(model) if "magnitude" in name}
    assert len(names) == 3 * 7 + (not quantize_base)
    for name in names:
        layer = model.get_submodule(name)
        norms = dequantized(layer.weight).double().square().sum(1).sqrt()
        torch.testing.assert_close(layer.magnitude.double(), norms, atol=0, rtol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_layer_without_bias_is_torchtunes(dropout):
    """Outputs, and the gradients of the input and of what is trained."""
    options = {"in_dim": 12, "out_dim": 8, "rank": 3, "alpha": 7, "dropout": dropout}
    layers = [DoRALinear(**options).double(), TorchtunesDoRALinear(**options).double()]
    for layer in layers:
        generator = torch.Generator().manual_seed(0)
        for _, parameter in sorted(layer.named_parameters()):
            parameter.data = torch.rand(parameter.shape, generator=generator).double() + 0.1
    assert layers[0].adapter_params() == layers[1].adapter_params()
    results = []
    for layer in layers:
        torch.manual_seed(1)
        x = torch.linspace(-1, 1, 60).double().reshape(5, 12).requires_grad_()
        layer(x).sin().sum().backward()
        trained = [layer.get_parameter(name).grad for name in layer.adapter_params()]
        results.append([layer(x.detach()) if dropout == 0 else x.grad, x.grad, *trained])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_a_row_of_zeros_stays_one():
    """Padded vocabularies have some."""
    layer = DoRALinear(4, 3, rank=2, alpha=2)
    layer.weight[1] = 0
    layer.magnitude.copy_(layer.weight.norm(dim=1))
    x = torch.randn(5, 4)
    assert torch.equal(layer(x), x @ layer.weight.T)


@pytest.mark.parametrize("quantize_base", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_the_export_is_the_live_model(make_hf, load_dora, tokens, tmp_path, family, quantize_base):
    """Merged, for transformers, and as an adapter, for PEFT; Qwen2 has biases."""
    directory, reference = make_hf(family)
    model = load_dora(directory, ALL, True, True, quantize_base=quantize_base)
    logits = model(tokens)
    assert (logits - reference(tokens).logits).abs().max() > 1
    merged, adapter, config = merged_state_dict(model)
    state = {MODEL_KEY: merged, ADAPTER_KEY: adapter, ADAPTER_CONFIG: config}
    HFCheckpointer(directory, output_dir=tmp_path / "out").save_checkpoint(state, epoch=0)
    saved = tmp_path / "out" / "epoch_0"

    exported, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(exported(tokens).logits, logits, **CLOSE)
    assert json.loads((saved / "adapter" / "adapter_config.json").read_text())["use_dora"] is True
    if not quantize_base:  # the adapter's base is the directory, which is not in NF4
        adapted = PeftModel.from_pretrained(reference, saved / "adapter").eval()
        torch.testing.assert_close(adapted(tokens).logits, logits, **CLOSE)


@torch.no_grad()
def test_merging_in_bf16_rounds_once(make_hf, load_dora):
    directory, _ = make_hf("llama")
    model = load_dora(directory, ["q_proj"]).bfloat16()
    merged, _, _ = merged_state_dict(model)
    layer = model.layers[0].attn.q_proj.double()
    exact = layer(torch.eye(32, dtype=torch.float64)).T
    rounded = merged["layers.0.attn.q_proj.weight"]
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())


def test_the_head_is_what_the_model_applies(make_hf, load_dora):
    directory, _ = make_hf("qwen3")
    model = load_dora(directory, ["q_proj"], False, True)
    hidden = torch.randn(5, 32)
    trained = [model.output.get_parameter(name) for name in model.output.adapter_params()]
    expected = model.output(hidden)
    logits = hidden @ head_weight(model).T
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)
    wanted = torch.autograd.grad(expected.sin().sum(), trained)
    got = torch.autograd.grad(logits.sin().sum(), trained)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_torchtunes_own_layers_are_refused(make_hf):
    directory, _ = make_hf("llama")
    sizes = {"vocab_size": 61, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2}
    sizes |= {"embed_dim": 32, "intermediate_dim": 40, "max_seq_len": 64}
    with torch.device("meta"):
        model = lora_llama3_2(ALL, True, **DORA, **sizes)
        weights = decoder(directory).state_dict()
    with pytest.raises(ValueError, match=r"use hf_models\.lora_decoder with use_dora: true"):
        load_weights(model, weights, "cpu", torch.float32)
