"""Models with several stacks: taps against transformers' own hidden states, pairs by stack."""

import pytest
import torch
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from layer_mapping import LayerMatcher, LayerTaps, MSELoss, resolve_stacks

DEPTHS = {"encoder": 4, "decoder": 3}


def t5():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_heads=2, num_layers=DEPTHS["encoder"],
        num_decoder_layers=DEPTHS["decoder"], dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def stacks_of(model):
    return lambda: {"encoder": model.encoder.block, "decoder": model.decoder.block}


def inputs():
    ids = torch.randint(1, 40, (2, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "decoder_input_ids": ids[:, :5]}


def test_taps_of_both_stacks_are_transformers_hidden_states():
    model = t5()
    chosen = [("encoder", 0), ("encoder", -2), ("decoder", 1)]
    taps = LayerTaps(model, chosen, stacks=stacks_of(model))
    with taps:
        output = model(**inputs(), output_hidden_states=True)
    expected = {
        ("encoder", 0): output.encoder_hidden_states[1],
        ("encoder", 2): output.encoder_hidden_states[3],
        ("decoder", 1): output.decoder_hidden_states[2],
    }
    assert taps.outputs.keys() == expected.keys()
    for tap, hidden in expected.items():
        assert torch.equal(taps.outputs[tap], hidden), tap


def test_one_stack_that_is_called_otherwise():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=40, intermediate_size=24, **sizes)).eval()
    taps = LayerTaps(model, [("encoder", 1)], stacks=lambda: {"encoder": model.encoder.layer})
    ids = torch.tensor([[3, 5, 7]])
    with taps:
        output = model(ids, output_hidden_states=True)
    assert torch.equal(taps.outputs["encoder", 1], output.hidden_states[2])


@pytest.mark.parametrize(
    ("chosen", "run"),
    [
        ([("encoder", 1), ("decoder", 1)], {"encoder": 4, "decoder": 2}),
        # Nothing of the decoder is wanted, but it must run to be one.
        ([("encoder", 0)], {"encoder": 4, "decoder": 1}),
    ],
)
def test_only_the_end_of_the_last_stack_is_left_out(chosen, run):
    model = t5()
    ran = dict.fromkeys(DEPTHS, 0)

    def count(stack):
        ran[stack] += 1

    for stack, blocks in stacks_of(model)().items():
        for block in blocks:
            block.register_forward_hook(lambda *_, stack=stack: count(stack))
    before = model(**inputs()).logits
    ran.update(dict.fromkeys(DEPTHS, 0))
    names = list(model.state_dict())
    with LayerTaps(model, chosen, truncate=True, stacks=stacks_of(model)):
        model(**inputs())
    assert ran == run
    assert {stack: len(blocks) for stack, blocks in stacks_of(model)().items()} == DEPTHS
    assert list(model.state_dict()) == names
    assert torch.equal(model(**inputs()).logits, before)


def test_blocks_come_back_after_an_error():
    model = t5()
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        LayerTaps(model, [("decoder", 0)], truncate=True, stacks=stacks_of(model)),
    ):
        raise RuntimeError("in the middle")
    assert len(model.decoder.block) == DEPTHS["decoder"]


def test_blocks_that_are_wrapped_after_the_taps_were_made():
    model = t5()
    taps = LayerTaps(model, [("decoder", 2)], stacks=stacks_of(model))
    model.decoder.block[2] = torch.nn.Sequential(torch.nn.Identity())
    with pytest.raises(TypeError), taps:
        model(**inputs())  # the identity takes no mask: the block that is there now was called


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (("encoders", 0), "stack 'encoders' does not exist; the model has encoder, decoder"),
        (("decoder", 3), "layer 3 of decoder is out of range; the model has 3 layers"),
        (("decoder", -4), "layer -4 of decoder is out of range"),
    ],
)
def test_taps_that_do_not_exist_are_refused(chosen, message):
    model = t5()
    with pytest.raises(ValueError, match=message):
        LayerTaps(model, [chosen], stacks=stacks_of(model))


def test_matchers_of_two_stacks_have_their_own_scope_and_count():
    model = t5()
    generator = torch.Generator().manual_seed(5)
    pairs = resolve_stacks(
        {"encoder": [[0, 5]], "decoder": "last"}, DEPTHS, {"encoder": 6, "decoder": 2}
    )
    assert pairs == {"encoder": [(0, 5)], "decoder": [(2, 1)]}
    taps = LayerTaps(model, [("encoder", 0), ("decoder", 2)], stacks=stacks_of(model))
    with taps:
        model(**inputs())
    for stack, length in (("encoder", 7), ("decoder", 5)):
        ((student, teacher),) = pairs[stack]
        other = torch.randn(2, length, 12, generator=generator)
        mask = torch.arange(length).expand(2, length) < torch.tensor([[length], [2]])
        matcher = LayerMatcher(pairs[stack], MSELoss(), 16, 12)
        total = matcher({student: taps.outputs[stack, student]}, {teacher: other}, mask).total
        weight = matcher.projections[f"s{student}"].state_dict()["weight"].double()
        mapped = taps.outputs[stack, student].double() @ weight.T
        distance = (mapped - other.double()).square().mean(-1)[mask].sum()
        assert total.item() == pytest.approx(distance.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("forward", r"layer_mapping must say it for each stack: \{encoder: forward, decoder"),
        ({"encoder": "forwards"}, "did you mean 'forward'"),
        ({"middle": "forward"}, "the student has no stack 'middle'; it has encoder, decoder"),
        ({"decoder": [[0, 9]]}, "9"),
    ],
)
def test_mappings_that_fit_no_stack_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        resolve_stacks(spec, DEPTHS, DEPTHS)


def test_a_stack_of_one_model_only_is_refused():
    with pytest.raises(ValueError, match="the teacher has no stack 'encoder'; it has decoder"):
        resolve_stacks({"encoder": "forward"}, DEPTHS, {"decoder": 3})


def test_the_only_stack_needs_no_name():
    assert resolve_stacks("last", {"decoder": 2}, {"decoder": 4}) == {"decoder": [(1, 3)]}
    assert resolve_stacks({"decoder": "none"}, DEPTHS, DEPTHS) == {}
