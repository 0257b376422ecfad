"""The objective against transformers' own outputs, and what divides its sums."""

import pytest
import tiny
import torch
from torch.nn import functional as F
from torchtune.modules import TransformerDecoder
from transformers import AutoModelForCausalLM


def gradients(loaded, batches):
    counts = sum(loaded.run.objective.counts(b) for b in batches)
    for parameter in loaded.step.parameters:
        parameter.grad = None
    total = 0.0
    for batch in batches:
        sums = loaded.run.objective(batch, counts)
        sums.total.backward()
        total += sums.total.item()
    return total, torch.cat([p.grad.flatten() for p in loaded.step.parameters])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_each_part_equals_what_transformers_outputs_give(make_run, layer_norm):
    loaded = make_run({"ir_loss.layer_norm": layer_norm, "lr_scheduler": None})
    batch = loaded.batch([0, 1, 3])
    outputs = {}
    for who in ("student", "teacher"):
        model = AutoModelForCausalLM.from_pretrained(loaded.directories[who]).double().eval()
        outputs[who] = model(batch.inputs["tokens"], output_hidden_states=True)
    keep = batch.labels != -100
    log_p = outputs["teacher"].logits[keep].log_softmax(-1)
    log_q = outputs["student"].logits[keep].log_softmax(-1)
    ce = -log_q.gather(-1, batch.labels[keep][:, None]).sum()
    kd = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    ir = 0.0
    pairs = [(0, 2), (1, 5)]  # 2 of 6 layers, evenly spaced; the last one before the final norm
    for s, t in pairs:
        teacher = layer_outputs(loaded, "teacher", batch)[t]
        student = layer_outputs(loaded, "student", batch)[s]
        if layer_norm:
            student, teacher = (F.layer_norm(x, x.shape[-1:]) for x in (student, teacher))
        ir += (1 - F.cosine_similarity(student, teacher, dim=-1))[keep].sum() / len(pairs)

    with torch.no_grad():
        sums = loaded.run.objective(batch, loaded.run.objective.counts(batch))
    expected = {"ce": ce, "kd": kd, "ir": ir}
    for part, value in loaded.by_name(sums.parts.tolist()).items():
        assert value == pytest.approx(float(expected[part]), rel=1e-5, abs=1e-9), part
    assert sums.total.item() == pytest.approx(float((ce + kd + 3 * ir) / keep.sum()), rel=1e-5)


def layer_outputs(loaded, who, batch):
    """Outputs of every decoder layer of the transformers model, in float64."""
    model = AutoModelForCausalLM.from_pretrained(loaded.directories[who]).double().eval()
    outputs = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    model(batch.inputs["tokens"])
    return [out[0] if isinstance(out, tuple) else out for out in outputs]


def test_four_uneven_micro_batches_give_the_gradient_of_one_batch(make_run):
    loaded = make_run()
    lengths = {len(loaded.run.source.loader.dataset[i]["tokens"]) for i in range(4)}
    assert len(lengths) > 2, "the micro-batches are meant to be uneven"
    randomise(loaded)
    whole_loss, whole = gradients(loaded, [loaded.batch([0, 1, 2, 3])])
    split_loss, split = gradients(loaded, [loaded.batch([i]) for i in range(4)])
    assert whole.norm() > 0
    assert split_loss == pytest.approx(whole_loss, rel=1e-6)
    assert ((split - whole).norm() / whole.norm()).item() < 1e-6


def randomise(loaded):
    """Give LoRA's B, which starts at 0, values, so that every adapter weight gets a gradient."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.step.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def test_a_masked_out_micro_batch_changes_nothing(make_run):
    loaded = make_run()
    randomise(loaded)
    batch, masked = loaded.batch([0, 1]), loaded.batch([2, 3], unlabelled=99)
    alone_loss, alone = gradients(loaded, [batch])
    both_loss, both = gradients(loaded, [batch, masked])
    assert both_loss == pytest.approx(alone_loss, rel=1e-6)
    assert ((both - alone).norm() / alone.norm()).item() < 1e-6
    nothing_loss, nothing = gradients(loaded, [masked])
    assert nothing_loss == 0
    assert torch.count_nonzero(nothing) == 0


def test_only_the_adapter_learns(make_run):
    loaded = make_run()
    before = {k: v.clone() for k, v in loaded.run.teacher.model.module.state_dict().items()}
    base = {
        k: v.clone() for k, v in loaded.run.student.module.state_dict().items() if "lora" not in k
    }
    loaded.step([loaded.batch([0, 1])], 1)
    assert not loaded.run.teacher.model.module.training
    assert all(
        p.grad is None and not p.requires_grad for p in loaded.run.teacher.model.module.parameters()
    )
    assert all(
        torch.equal(v, before[k]) for k, v in loaded.run.teacher.model.module.state_dict().items()
    )
    after = loaded.run.student.module.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in base.items())
    assert any(torch.count_nonzero(after[k]) for k in after if k.endswith("lora_b.weight"))


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(make_run):
    loaded = make_run(student="teacher")
    batch = loaded.batch([0, 1, 2])
    _, parts, pairs = loaded.run.objective(batch, loaded.run.objective.counts(batch))
    values = loaded.by_name(parts.tolist())
    assert values["kd"] == pytest.approx(0, abs=1e-4)
    assert values["ir"] == pytest.approx(0, abs=1e-4)
    assert values["ce"] > 1
    assert len(pairs) == 6


@pytest.mark.parametrize("scope", ["labels", "all"])
def test_scope_decides_the_positions_of_the_divergence(make_run, scope):
    loaded = make_run({"token_scope.kd": scope})
    batch = loaded.batch([0, 1], unlabelled=3)
    counts = loaded.counts(batch)
    real = batch.scopes["all"]["logits"].sum().item()
    assert counts["ce"] == (batch.labels != -100).sum().item() < real
    assert counts["kd"] == (real if scope == "all" else counts["ce"])


def test_a_prompt_loss_covers_exactly_the_positions_without_a_label(make_run):
    both = {"prompt_kd_loss": {"_component_": "kd_losses.ForwardKLLoss"}}
    loaded, everywhere = make_run(both), make_run({"token_scope.kd": "all"})
    batch = loaded.batch([0, 1], unlabelled=3)
    parts, whole = loaded.parts(batch), everywhere.parts(batch)
    assert parts["prompt_kd"] > 0
    assert parts["kd"] + parts["prompt_kd"] == pytest.approx(whole["kd"], rel=1e-5)


@pytest.mark.parametrize(("kd", "decoders"), [(0.0, 1), (1.0, 2)])
def test_weights_of_zero_run_no_teacher(make_run, monkeypatch, kd, decoders):
    scales = {"ce": 1.0, "kd": kd, "ir": 0.0}
    loaded = make_run({"loss_scaling.manual_scales": scales})
    ran, forward = [], TransformerDecoder.forward
    monkeypatch.setattr(
        TransformerDecoder,
        "forward",
        lambda self, *a, **k: ran.append(self) or forward(self, *a, **k),
    )
    loaded.step([loaded.batch([0, 1]), loaded.batch([2])], 1)
    assert len(ran) == 2 * decoders, "forwards of two micro-batches"


def test_weights_of_zero_leave_the_teacher_out(make_run):
    loaded = make_run({"loss_scaling.manual_scales": {"ce": 1.0, "kd": 0.0, "ir": 0.0}})
    assert loaded.run.teacher is None
    values = loaded.step([loaded.batch([0, 1])], 1)
    assert values["total"] == values["ce"] > 0
    assert "kd" not in values
    assert "ir" not in values


def test_padding_never_counts_although_pad_and_end_share_an_id(make_run):
    loaded = make_run({"token_scope.kd": "all", "token_scope.ir": "all"})
    short, long = (loaded.run.source.loader.dataset[i] for i in (2, 3))
    assert tiny.SENTENCES[2] == "Numbers are immutable."
    batch = loaded.batch([2, 3])
    assert batch.scopes["all"]["logits"].sum().item() == len(short["tokens"]) + len(long["tokens"])
    counts = loaded.counts(batch)
    _, padded = gradients(loaded, [batch])
    _, single = gradients(loaded, [loaded.batch([2]), loaded.batch([3])])
    assert counts["kd"] == batch.scopes["all"]["logits"].sum()
    assert ((padded - single).norm() / single.norm()).item() < 1e-6
