"""Texts that are read without padding, and layers with fewer passes: the plain ones' numbers."""

import copy

import pytest
import tiny
import torch
from torchtune.modules import FeedForward, RMSNorm
from torchtune.modules.peft import LoRALinear
from transformers import AutoModelForCausalLM

from hf_models import HFCheckpointer, decoder
from hf_models.loading import load
from hf_models.torchtune_decoder.cpu_layers import FusedFeedForward, FusedRMSNorm
from hf_models.torchtune_decoder.lora_linear import FusedLoRALinear
from hf_models.torchtune_decoder.model import DecoderModel

LENGTHS = [23, 1, 0, 40]


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def models(request, tmp_path_factory):
    """Ours and transformers' of one directory."""
    directory = tiny.save_model(tmp_path_factory.mktemp(request.param), request.param)
    with torch.device("meta"):
        ours = DecoderModel(decoder(directory))
    load(ours, HFCheckpointer(directory).load_checkpoint()["model"], "cpu")
    return ours, AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def rows(lengths=LENGTHS):
    tokens = torch.randint(0, 300, (len(lengths), max(lengths)))
    return tokens, torch.tensor(lengths)


def test_each_text_is_what_transformers_gives_for_it_alone(models):
    ours, theirs = models
    tokens, lengths = rows()
    view = ours.view({"tokens": tokens, "lengths": lengths}, [("decoder", 1)])
    for row, length in enumerate(LENGTHS):
        text = tokens[row : row + 1, :length]
        hidden = view.hidden[row, :length]
        assert torch.count_nonzero(view.hidden[row, length:]) == 0
        if length:
            with torch.no_grad():
                expected = theirs.model(text, output_hidden_states=True)
            torch.testing.assert_close(hidden, expected.last_hidden_state[0], rtol=1e-4, atol=1e-4)
            layer = expected.hidden_states[2][0]
            torch.testing.assert_close(
                view.taps["decoder", 1][row, :length], layer, rtol=1e-4, atol=1e-4
            )


def test_a_text_has_the_same_bits_in_any_company(models):
    ours, _ = models
    tokens, lengths = rows()
    together = ours.view({"tokens": tokens, "lengths": lengths}).hidden
    packed = torch.cat([tokens[i, :n] for i, n in enumerate(LENGTHS)])[None]
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(LENGTHS)])[None]
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    inputs = {"tokens": packed, "documents": documents, "input_pos": positions}
    of_pack, start = ours.view(inputs).hidden[0], 0
    for row, length in enumerate(LENGTHS):
        assert torch.equal(of_pack[start : start + length], together[row, :length])
        start += length
        if length:
            one = {"tokens": tokens[row : row + 1, :length], "lengths": lengths[row : row + 1]}
            assert torch.equal(ours.view(one).hidden[0], together[row, :length])


def test_texts_together_may_be_longer_than_one_may_be(models):
    ours, _ = models
    tokens, lengths = rows([100, 100, 100])  # of 128 positions that the model has
    assert ours.view({"tokens": tokens, "lengths": lengths}).hidden.shape == (3, 100, 32)
    assert ours.module.max_seq_len == 128
    with pytest.raises(ValueError, match="max_seq_len"):
        ours.view({"tokens": torch.zeros(1, 200, dtype=torch.long)})


def test_the_gradient_is_that_of_padded_rows(models):
    ours, _ = models
    tokens, lengths = rows()
    counted = torch.arange(40) < lengths[:, None]
    weights = torch.randn(4, 40, 32)
    grads = []
    for inputs in ({"tokens": tokens, "lengths": lengths}, {"tokens": tokens}):
        ours.module.zero_grad()
        (ours.view(inputs).hidden * weights)[counted].sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in ours.module.parameters()]))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-3)


def layer_pairs():
    """Ours, torchtune's, and the width of the input."""
    torch.manual_seed(0)
    lora = {"in_dim": 12, "out_dim": 20, "rank": 3, "alpha": 7.0}
    mlp = {n: torch.nn.Linear(*s) for n, s in (("gate_proj", (12, 16)), ("up_proj", (12, 16)))}
    mlp["down_proj"] = torch.nn.Linear(16, 12)
    down = {"in_dim": 16, "out_dim": 12, "rank": 3, "alpha": 7.0}
    own = mlp | {"down_proj": FusedLoRALinear(**down)}
    torchtunes = mlp | {"down_proj": LoRALinear(**down)}
    return {
        "lora": (FusedLoRALinear(**lora), LoRALinear(**lora)),
        "lora with a bias": (FusedLoRALinear(**lora, use_bias=True),
                             LoRALinear(**lora, use_bias=True)),
        "norm": (FusedRMSNorm(12, eps=1e-5), RMSNorm(12, eps=1e-5)),
        "mlp": (FusedFeedForward(**mlp), FeedForward(**mlp)),
        "mlp with lora": (FusedFeedForward(**own), FeedForward(**torchtunes)),
    }  # fmt: skip


@pytest.mark.parametrize("name", layer_pairs())
def test_a_layer_is_torchtunes_with_its_gradients(name):
    ours, theirs = layer_pairs()[name]
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_()
    ours = copy.deepcopy(ours)  # they may share layers
    ours.load_state_dict(theirs.state_dict())
    x, weights = torch.randn(5, 3, 12), None
    results = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        out = layer(given)
        weights = torch.randn_like(out) if weights is None else weights
        (out * weights).sum().backward()
        results.append([out, given.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_a_norm_of_very_small_or_large_numbers_is_that_of_float64(scale):
    layer = FusedRMSNorm(16, eps=1e-6)
    x = (torch.randn(4, 16) * scale).requires_grad_()
    out = layer(x)
    out.sum().backward()
    wide = x.detach().double().requires_grad_()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected.sum().backward()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=1e-3, atol=1e-2 / max(scale, 1))
