"""Runs on text that the student writes itself, against independent loops and runs without it."""

import pytest
import torch
from omegaconf import OmegaConf
from resuming import check_same, distil
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

WRITES = {"max_new_tokens": 12, "prompt_tokens": 5, "val_prompts": 0}
PLAIN = {"layer_mapping": "none", "shuffle": False, "on_policy": WRITES}


def forward_kl(log_p, log_q):
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def reverse_kl(log_p, log_q):
    return forward_kl(log_q, log_p)


def js(log_p, log_q):
    log_m = ((log_p.exp() + log_q.exp()) / 2).log()
    return (forward_kl(log_p, log_m) + forward_kl(log_q, log_m)) / 2


LOSSES = {
    "kd_losses.ForwardKLLoss": forward_kl,
    "kd_losses.ReverseKLLoss": reverse_kl,
    "kd_losses.JSDistanceLoss": js,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_equals_a_loop_over_its_texts_one_by_one(load_run, tiny_run, tmp_path, loss):
    """Float64, transformers, no padding, no chunks: the same loss and the same gradient."""
    student = str(tiny_run.directories["student"])
    model = {"_component_": "hf_models.decoder", "checkpoint_dir": student}
    cfg = OmegaConf.create(tiny_run.config(tmp_path) | PLAIN | {"model": model})
    cfg.kd_loss = {"_component_": loss}
    if loss.endswith("JSDistanceLoss"):
        cfg.kd_loss.lambda_weight = 0.5
    loaded = load_run(cfg)
    micro_batches = next(loaded.run.source.steps(0))
    assert len(micro_batches) == 2
    values = loaded.step(micro_batches, 1)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(loaded.directories[who]).double().eval()
        for who in ("student", "teacher")
    )
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in micro_batches:
        for tokens, length, labels in zip(
            batch.inputs["tokens"], batch.inputs["lengths"], batch.labels, strict=True
        ):
            text, written = tokens[:length][None], labels[:length] != -100
            assert written.nonzero()[0] == WRITES["prompt_tokens"] - 1
            with torch.no_grad():
                log_p = teacher(text).logits[0].log_softmax(-1)
            log_q = student(text).logits[0].log_softmax(-1)
            total = total + LOSSES[loss](log_p[written], log_q[written])
            count += int(written.sum())
    mean = total / count
    mean.backward()
    norm = torch.stack([p.grad.norm() for p in student.parameters()]).norm()
    assert values["num_tokens"] == count
    assert values["kd"] == pytest.approx(mean.item(), rel=1e-5)
    assert values["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert "ce" not in values
    assert values["total"] == pytest.approx(values["kd"], rel=1e-9)


def test_layers_are_matched_on_own_text_too(make_run):
    loaded = make_run({"on_policy": WRITES})
    values = loaded.step(next(loaded.run.source.steps(0)), 1)
    assert values["ir"] > 0
    assert values["total"] == pytest.approx(values["kd"] + 3 * values["ir"], rel=1e-6)
    assert 0 < values["entropy"] < torch.tensor(320.0).log()


def test_without_a_fraction_nothing_changes(tiny_run, tmp_path):
    plain = tiny_run.config(tmp_path / "plain")
    own = tiny_run.config(tmp_path / "own") | {"on_policy": WRITES | {"fraction": 0.0}}
    assert distil(plain) == distil(own) == 0
    check_same(tmp_path / "own" / "out", tmp_path / "plain" / "out")


def test_steps_on_given_text_are_as_ever(make_run):
    mixed = make_run({"on_policy": WRITES | {"fraction": 0.5}, "epochs": 4})
    plain = make_run({"epochs": 4})
    source = mixed.run.source
    steps = range(1, mixed.run.total_steps + 1)
    written = [source.writes(step) for step in steps]
    assert True in written
    assert False in written
    for step in steps:
        epoch, first = divmod(step - 1, source.steps_per_epoch)
        batches = next(source.steps(epoch, first))
        assert all(batch.written == written[step - 1] for batch in batches)
        if not written[step - 1]:
            given = next(plain.run.source.steps(epoch, first))
            values, expected = mixed.step(batches, step), plain.step(given, step)
            assert {name: values[name] for name in expected} == expected
            return


def test_the_share_of_written_steps_is_the_fraction(make_run):
    number = 20000
    for fraction in (0.25, 0.5):
        source = make_run({"on_policy": WRITES | {"fraction": fraction}}).run.source
        share = sum(map(source.writes, range(1, number + 1))) / number
        assert abs(share - fraction) < 5 * (fraction * (1 - fraction) / number) ** 0.5


def test_weights_that_follow_magnitudes_do_not_take_no_labels_for_a_loss_of_zero(make_run):
    loaded = make_run(
        {"on_policy": WRITES | {"fraction": 0.5}, "loss_scaling.dynamic": {"ema": 0.5}}
    )
    given = next(loaded.run.source.given.steps(0))
    loaded.step(given, 1)
    before = loaded.run.scales.state_dict()
    completed, _ = loaded.run.source._completed(given, 0)
    loaded.step(completed, 2)
    after = loaded.run.scales.state_dict()
    mean = [state["sums"]["ce"] / state["weight"] for state in (before, after)]
    assert mean[1] == pytest.approx(mean[0], rel=1e-12)
    assert after["sums"]["kd"] != before["sums"]["kd"]
