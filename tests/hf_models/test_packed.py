"""Packed copies of a decoder's weights, which it writes with on a CPU."""

import pytest
import torch
from torchtune.modules.peft import LoRALinear

from hf_models import DecoderModel, Sampling, decoder, lora_decoder
from hf_models.torchtune_decoder.packed import packed, packed_logits

LORA = ["q_proj", "k_proj", "v_proj", "output_proj"]


@pytest.fixture(params=["plain", "LoRA", "DoRA"])
def model(request, make_hf, load):
    directory, _ = make_hf("llama")
    if request.param == "plain":
        return DecoderModel(load(decoder, directory).eval())
    options = {"use_dora": request.param == "DoRA", "lora_rank": 4}
    made = DecoderModel(load(lora_decoder, directory, LORA, True, **options).eval())
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.module.named_parameters():
            if "lora_b" in name:
                parameter.normal_(std=0.2)
    return made


def changed(model):
    return [layer for layer in model.module.modules() if "forward" in vars(layer)]


def test_they_write_what_the_weights_write(model, monkeypatch):
    prompts = [torch.arange(1, 4 + i) for i in range(5)]
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    for temperature in (0.0, 1.0):
        sampling = Sampling(16, temperature)
        written = model.generate(prompts, sampling, {0}, list(range(5)))
        with monkeypatch.context() as patch:
            patch.setattr("hf_models.torchtune_decoder.generate._OFTEN", 10**9)
            plain = model.generate(prompts, sampling, {0}, list(range(5)))
        assert [one.tolist() for one in written] == [one.tolist() for one in plain]
    after = model.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not changed(model)


@torch.no_grad()
def test_their_products_are_those_of_weight_and_adapter(model):
    mlp = model.module.layers[0].mlp
    x = torch.randn(3, 7, model.facts.stacks["decoder"].width)
    hidden = torch.randn(5, x.shape[-1])
    expected, logits = mlp(x), model.head().logits(hidden)
    with packed(model.module):
        assert len(changed(model)) == 7 * len(model.module.layers)
        torch.testing.assert_close(mlp(x), expected)
        torch.testing.assert_close(packed_logits(model.head())(hidden), logits)
    if isinstance(mlp.w1, LoRALinear):
        with model.without_adapter():
            base = mlp(x)
            with packed(model.module):
                torch.testing.assert_close(mlp(x), base)
        assert not torch.allclose(base, expected)


@torch.no_grad()
def test_other_types_stay_as_they_are(model):
    model.module.bfloat16()
    head = model.head()
    with packed(model.module):
        assert not changed(model)
    assert packed_logits(head) == head.logits
