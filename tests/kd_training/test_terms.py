"""Terms beside the built-in ones: observed, of one's own, and one for each stack of layers."""

import json

import pytest
import torch
from resuming import records
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from hf_models import ModelFacts, Stack, View
from kd_data import Batch
from kd_losses import Head
from kd_teachers import Live, Needs, check_needs
from kd_training.objective.layers import LayerTerm
from kd_training.objective.objective import Objective
from layer_mapping import LayerMatcher, LayerTaps, MSELoss

AGREE = {"log_agreement": True}


def logits_of(loaded, who, batch):
    model = AutoModelForCausalLM.from_pretrained(loaded.directories[who]).eval()
    with torch.no_grad():
        return model(batch.inputs["tokens"]).logits


def test_agreement_is_how_often_both_say_the_same(make_run):
    loaded = make_run(AGREE)
    batch = loaded.batch([0, 1, 2, 3])
    kept = batch.labels != -100
    student, teacher = (logits_of(loaded, who, batch)[kept] for who in ("student", "teacher"))
    share = (student.argmax(-1) == teacher.argmax(-1)).double().mean().item()
    values = loaded.step([batch], 1)
    assert values["agreement"] == pytest.approx(share, abs=1e-12)
    weighted = sum(values[f"weight/{part}"] * values[part] for part in ("ce", "kd", "ir"))
    assert values["total"] == pytest.approx(weighted), "it is only observed"
    assert "weight/agreement" not in values


def test_the_agreement_of_a_step_is_that_of_all_its_micro_batches(make_run):
    whole, split = make_run(AGREE), make_run(AGREE)
    one = whole.step([whole.batch([0, 1, 2, 3])], 1)["agreement"]
    several = split.step([split.batch([0]), split.batch([1, 2]), split.batch([3])], 1)["agreement"]
    assert several == pytest.approx(one, abs=1e-12)


def test_what_is_logged_is_on_the_bar_in_the_plot_and_on_the_card(make_run, monkeypatch):
    drawn, bars = [], []
    monkeypatch.setattr("kd_training.loop.plot_losses", lambda *a: drawn.append(a[2]))
    postfix = "kd_training.output.metrics.tqdm.set_postfix"
    monkeypatch.setattr(postfix, lambda _, shown, refresh: bars.append(list(shown)))
    loaded = make_run(AGREE | {"dataset_val": "${dataset}", "epochs": 1})
    loaded.train()
    directory = loaded.run.records.directory
    steps = records(directory)
    assert all(0 <= step["agreement"] <= 1 for step in steps if "total" in step)
    assert any("val/agreement" in step for step in steps)
    assert [panel.name for panel in drawn[0]] == ["ce", "kd", "ir", "agreement"]
    assert bars[0] == ["total", "ce", "kd", "ir", "agreement"]
    card = (directory / "epoch_0" / "README.md").read_text()
    assert "| teacher's most probable token, labels | `same token` |  | 0" in card


def test_agreement_needs_the_teacher_and_nothing_else(make_run):
    scales = {"loss_scaling.manual_scales": {"ce": 1.0, "kd": 0.0, "ir": 0.0}}
    values = make_run(AGREE | scales).step([make_run(scales).batch([0, 1])], 1)
    assert "kd" not in values
    assert 0 <= values["agreement"] <= 1


OWN = {
    "terms": {
        "confidence": {"_component_": "own_terms.Confidence", "scope": "all"},
        "ahead": {"_component_": "own_terms.MarginAhead"},
    },
}


def test_a_term_of_ones_own_is_weighted_by_its_name(make_run):
    plain = make_run()
    loaded = make_run(OWN | {"loss_scaling.manual_scales.confidence": 0.25})
    batch = loaded.batch([0, 1])
    log_q = logits_of(loaded, "student", batch)[batch.scopes["all"]["logits"]].log_softmax(-1)
    confidence = (log_q.exp() * log_q).sum(-1).mean().item()
    values, without = loaded.step([batch], 1), plain.step([batch], 1)
    assert values["confidence"] == pytest.approx(confidence, rel=1e-5)
    assert values["weight/confidence"] == 0.25
    assert values["total"] == pytest.approx(without["total"] + 0.25 * confidence, rel=1e-5)
    assert "weight/ahead" not in values
    assert values["ahead"] != 0
    assert values["grad_norm"] != without["grad_norm"]


def test_a_run_with_terms_of_ones_own_goes_on_and_says_so(make_run):
    loaded = make_run(OWN | {"epochs": 1})
    loaded.train()
    directory = loaded.run.records.directory
    card = (directory / "epoch_0" / "README.md").read_text()
    assert "own_terms.Confidence(scope=all)" in card
    (state,) = (directory / "recipe_state").glob("step_*/state.json")
    assert set(json.loads(state.read_text())["terms"]) >= {"ce", "kd", "ir", "confidence", "ahead"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"terms": {"ce": {"_component_": "own_terms.Confidence"}}}, ["terms.ce", "another name"]),
        ({"terms": {"a b": {"_component_": "own_terms.Confidence"}}}, ["terms.a b", "plain word"]),
        ({"terms": {"x": "own_terms.Confidence"}}, ["terms.x", "_component_"]),
        ({"terms": {"x": {"_component_": "own_terms.Confidence", "scop": 1}}}, ["did you mean sc"]),
        ({"terms": {"x": {"_component_": "torch.nn.Identity"}}}, ["terms.x", "LogitsTerm"]),
        (
            OWN | {"loss_scaling.manual_scales.confidense": 1.0},
            ["manual_scales.confidense", "did you mean confidence"],
        ),
    ],
)
def test_terms_that_do_not_fit_are_refused(make_run, changes, words):
    with pytest.raises(ValueError, match=r"^config: ") as error:
        make_run(changes)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_what_is_only_observed_trains_nothing_and_is_refused(make_run):
    nothing = {f"loss_scaling.manual_scales.{key}": 0.0 for key in ("ce", "kd", "ir")}
    with pytest.raises(ValueError, match="every part has the weight 0"):
        make_run(nothing | {"terms": {"ahead": {"_component_": "own_terms.MarginAhead"}}})


class Seq2Seq:
    """A T5 behind the interface of a model."""

    def __init__(self, width, depths, seed):
        torch.manual_seed(seed)
        encoder, decoder = depths
        self.module = T5ForConditionalGeneration(
            T5Config(
                vocab_size=32, d_model=width, d_kv=4, d_ff=16, num_heads=2, num_layers=encoder,
                num_decoder_layers=decoder, dropout_rate=0.0, decoder_start_token_id=0,
            )
        ).eval()  # fmt: skip
        sizes = {"encoder": Stack(encoder, width), "decoder": Stack(decoder, width)}
        self.facts = ModelFacts("seq2seq_lm", 32, None, sizes)

    def stacks(self):
        return {"encoder": self.module.encoder.block, "decoder": self.module.decoder.block}

    def view(self, inputs, taps=(), logits=True):
        recorder = LayerTaps(self.module, taps, stacks=self.stacks)
        with recorder:
            output = self.module(**inputs, output_hidden_states=True)
        return View(output.decoder_hidden_states[-1], dict(recorder.outputs))

    def head(self):
        return Head(self.module.lm_head.weight)


def test_each_stack_has_its_own_scope_and_its_own_count():
    student, teacher = Seq2Seq(8, (2, 2), 0), Seq2Seq(8, (4, 3), 1)
    ids = torch.arange(1, 15).view(2, 7)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "decoder_input_ids": ids[:, :4],
    }
    labels = ids[:, 1:5].clone()
    labels[1, 2:] = -100
    of_encoder = torch.ones(2, 7, dtype=torch.bool)
    masks = {"logits": labels != -100, "decoder": labels != -100, "encoder": of_encoder}
    batch = Batch(
        inputs,
        labels,
        {"labels": masks, "all": {"encoder": of_encoder}},
        {name: torch.zeros_like(mask, dtype=torch.int64) for name, mask in masks.items()},
        torch.zeros(1, 2, dtype=torch.int64),
    )
    pairs = {"encoder": [(0, 2)], "decoder": [(1, 1)]}
    terms = [
        LayerTerm(f"ir_{stack}", stack, LayerMatcher(of, MSELoss(), 8, 8), None, scope)
        for (stack, of), scope in zip(pairs.items(), ("all", "labels"), strict=True)
    ]
    objective = Objective(student, Live(teacher), terms, {"ir": 3.0})
    counts = objective.counts(batch)
    assert counts.tolist() == [14, 6]
    sums = objective(batch, counts)
    outputs = [model.module(**inputs, output_hidden_states=True) for model in (student, teacher)]
    expected = []
    for stack, mask in (("encoder", of_encoder), ("decoder", masks["decoder"])):
        ((s, t),) = pairs[stack]
        ours, theirs = (getattr(o, f"{stack}_hidden_states") for o in outputs)
        distance = (ours[s + 1] - theirs[t + 1]).square().mean(-1)
        # The last entry of transformers' is after the final norm: the block's own output is not.
        expected.append(None if s + 1 == len(ours) - 1 else distance[mask].sum().item())
    assert sums.parts[0].item() == pytest.approx(expected[0], rel=1e-5)
    values = objective.means([sums], counts, lambda x: x)
    assert values["ir_encoder"] == pytest.approx(expected[0] / 14, rel=1e-5)
    assert values["total"] == pytest.approx(3 * (values["ir_encoder"] + values["ir_decoder"]))
    assert values["ir_encoder/s0-t2"] == pytest.approx(values["ir_encoder"])
    assert sums.total.item() == pytest.approx(values["total"], rel=1e-6)


class NothingButLogits:
    gives = frozenset({"full", "top_k"})

    def lacks(self, needs):
        return None


def test_what_a_teacher_does_not_give_is_refused_by_name():
    needs = Needs(taps=frozenset({("decoder", 0)}))
    check_needs(NothingButLogits(), "kd", Needs(distribution=True))
    with pytest.raises(ValueError, match="ir needs the outputs of its layers, which Nothing"):
        check_needs(NothingButLogits(), "ir", needs)
