"""The objective against transformers' own outputs, and what divides its sums."""

import pytest
import tiny
import torch
from torch.nn import functional as F
from torchtune.modules import TransformerDecoder
from transformers import AutoModelForCausalLM

from kd_training.objective.objective import PARTS


def batch_of(trainer, indices):
    """One collated micro-batch of the given samples of the training set."""
    loader = trainer.data.loader
    return loader.collate_fn([loader.dataset[i] for i in indices])


def gradients(trainer, batches):
    counts = sum(trainer.objective.counts(b) for b in batches)
    for parameter in trainer.step.parameters:
        parameter.grad = None
    total = 0.0
    for batch in batches:
        sums = trainer.objective(batch, counts)
        sums.total.backward()
        total += sums.total.item()
    return total, torch.cat([p.grad.flatten() for p in trainer.step.parameters])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_each_part_equals_what_transformers_outputs_give(make_trainer, layer_norm):
    trainer = make_trainer({"ir_loss.layer_norm": layer_norm, "lr_scheduler": None})
    batch = batch_of(trainer, [0, 1, 3])
    outputs = {}
    for who in ("student", "teacher"):
        model = AutoModelForCausalLM.from_pretrained(trainer.directories[who]).double().eval()
        outputs[who] = model(batch["tokens"], output_hidden_states=True)
    keep = batch["labels"] != -100
    log_p = outputs["teacher"].logits[keep].log_softmax(-1)
    log_q = outputs["student"].logits[keep].log_softmax(-1)
    ce = -log_q.gather(-1, batch["labels"][keep][:, None]).sum()
    kd = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    ir = 0.0
    pairs = [(0, 2), (1, 5)]  # 2 of 6 layers, evenly spaced; the last one before the final norm
    for s, t in pairs:
        teacher = layer_outputs(trainer, "teacher", batch)[t]
        student = layer_outputs(trainer, "student", batch)[s]
        if layer_norm:
            student, teacher = (F.layer_norm(x, x.shape[-1:]) for x in (student, teacher))
        ir += (1 - F.cosine_similarity(student, teacher, dim=-1))[keep].sum() / len(pairs)

    with torch.no_grad():
        sums = trainer.objective(batch, trainer.objective.counts(batch))
    expected = {"ce": ce, "kd": kd, "ir": ir, "prompt_kd": 0.0}
    for part, value in zip(PARTS, sums.parts.tolist(), strict=True):
        assert value == pytest.approx(float(expected[part]), rel=1e-5, abs=1e-9), part
    assert sums.total.item() == pytest.approx(float((ce + kd + 3 * ir) / keep.sum()), rel=1e-5)


def layer_outputs(trainer, who, batch):
    """Outputs of every decoder layer of the transformers model, in float64."""
    model = AutoModelForCausalLM.from_pretrained(trainer.directories[who]).double().eval()
    outputs = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    model(batch["tokens"])
    return [out[0] if isinstance(out, tuple) else out for out in outputs]


def test_four_uneven_micro_batches_give_the_gradient_of_one_batch(make_trainer):
    trainer = make_trainer()
    lengths = {len(trainer.data.loader.dataset[i]["tokens"]) for i in range(4)}
    assert len(lengths) > 2, "the micro-batches are meant to be uneven"
    randomise(trainer)
    whole_loss, whole = gradients(trainer, [batch_of(trainer, [0, 1, 2, 3])])
    split_loss, split = gradients(trainer, [batch_of(trainer, [i]) for i in range(4)])
    assert whole.norm() > 0
    assert split_loss == pytest.approx(whole_loss, rel=1e-6)
    assert ((split - whole).norm() / whole.norm()).item() < 1e-6


def randomise(trainer):
    """Give LoRA's B, which starts at 0, values, so that every adapter weight gets a gradient."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.step.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def test_a_masked_out_micro_batch_changes_nothing(make_trainer):
    trainer = make_trainer()
    randomise(trainer)
    batch, masked = batch_of(trainer, [0, 1]), batch_of(trainer, [2, 3])
    masked["labels"].fill_(-100)
    alone_loss, alone = gradients(trainer, [batch])
    both_loss, both = gradients(trainer, [batch, masked])
    assert both_loss == pytest.approx(alone_loss, rel=1e-6)
    assert ((both - alone).norm() / alone.norm()).item() < 1e-6
    nothing_loss, nothing = gradients(trainer, [masked])
    assert nothing_loss == 0
    assert torch.count_nonzero(nothing) == 0


def test_only_the_adapter_learns(make_trainer):
    trainer = make_trainer()
    before = {k: v.clone() for k, v in trainer.teacher.state_dict().items()}
    base = {k: v.clone() for k, v in trainer.student.state_dict().items() if "lora" not in k}
    trainer.step([batch_of(trainer, [0, 1])], 1)
    assert not trainer.teacher.training
    assert all(p.grad is None and not p.requires_grad for p in trainer.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in trainer.teacher.state_dict().items())
    after = trainer.student.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in base.items())
    assert any(torch.count_nonzero(after[k]) for k in after if k.endswith("lora_b.weight"))


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(make_trainer):
    trainer = make_trainer(student="teacher")
    batch = batch_of(trainer, [0, 1, 2])
    _, parts, pairs = trainer.objective(batch, trainer.objective.counts(batch))
    values = dict(zip(PARTS, parts.tolist(), strict=True))
    assert values["kd"] == pytest.approx(0, abs=1e-4)
    assert values["ir"] == pytest.approx(0, abs=1e-4)
    assert values["ce"] > 1
    assert len(pairs) == 6


@pytest.mark.parametrize("scope", ["labels", "all"])
def test_scope_decides_the_positions_of_the_divergence(make_trainer, scope):
    trainer = make_trainer({"token_scope.kd": scope})
    batch = batch_of(trainer, [0, 1])
    batch["labels"][:, :3] = -100
    counts = dict(zip(PARTS, trainer.objective.counts(batch).tolist(), strict=True))
    real = batch["valid"].sum().item()
    assert counts["ce"] == (batch["labels"] != -100).sum().item() < real
    assert counts["kd"] == (real if scope == "all" else counts["ce"])


def test_a_prompt_loss_covers_exactly_the_positions_without_a_label(make_trainer):
    both = {"prompt_kd_loss": {"_component_": "kd_losses.ForwardKLLoss"}}
    trainer, everywhere = make_trainer(both), make_trainer({"token_scope.kd": "all"})
    batch = batch_of(trainer, [0, 1])
    batch["labels"][:, :3] = -100
    parts = dict(zip(PARTS, trainer.objective(batch, torch.ones(4)).parts, strict=True))
    whole = dict(zip(PARTS, everywhere.objective(batch, torch.ones(4)).parts, strict=True))
    assert parts["prompt_kd"] > 0
    assert (parts["kd"] + parts["prompt_kd"]).item() == pytest.approx(whole["kd"].item(), rel=1e-5)


@pytest.mark.parametrize(("kd", "decoders"), [(0.0, 1), (1.0, 2)])
def test_weights_of_zero_run_no_teacher(make_trainer, monkeypatch, kd, decoders):
    scales = {"ce": 1.0, "kd": kd, "ir": 0.0}
    trainer = make_trainer({"loss_scaling.manual_scales": scales})
    ran, forward = [], TransformerDecoder.forward
    monkeypatch.setattr(
        TransformerDecoder,
        "forward",
        lambda self, *a, **k: ran.append(self) or forward(self, *a, **k),
    )
    trainer.step([batch_of(trainer, [0, 1]), batch_of(trainer, [2])], 1)
    assert len(ran) == 2 * decoders, "forwards of two micro-batches"


def test_weights_of_zero_leave_the_teacher_out(make_trainer):
    trainer = make_trainer({"loss_scaling.manual_scales": {"ce": 1.0, "kd": 0.0, "ir": 0.0}})
    assert trainer.teacher is None
    values = trainer.step([batch_of(trainer, [0, 1])], 1)
    assert values["total"] == values["ce"] > 0
    assert "kd" not in values
    assert "ir" not in values


def test_padding_never_counts_although_pad_and_end_share_an_id(make_trainer):
    trainer = make_trainer({"token_scope.kd": "all", "token_scope.ir": "all"})
    short, long = (trainer.data.loader.dataset[i] for i in (2, 3))
    assert tiny.SENTENCES[2] == "Numbers are immutable."
    batch = batch_of(trainer, [2, 3])
    assert batch["valid"].sum().item() == len(short["tokens"]) + len(long["tokens"])
    counts = trainer.objective.counts(batch)
    _, padded = gradients(trainer, [batch])
    _, single = gradients(trainer, [batch_of(trainer, [2]), batch_of(trainer, [3])])
    assert counts[PARTS.index("kd")] == batch["valid"].sum()
    assert ((padded - single).norm() / single.norm()).item() < 1e-6
