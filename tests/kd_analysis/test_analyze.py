"""Angles and overlaps against transformers' own hidden states and logits."""

import json
import math
import sys

import kd_analyze
import numpy as np
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from PIL import Image
from transformers import AutoModelForCausalLM

from hf_models import init_student
from kd_analysis.probe.analyze import analyze
from kd_analysis.probe.layer_angles import Angles
from kd_analysis.probe.logit_overlap import Overlap

PAD = 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny.make_tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def samples():
    """Three samples of unequal length; the first tokens of each have no label."""
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in (12, 7, 20)]
    return [{"tokens": t, "labels": [-100] * 4 + t[4:]} for t in tokens]


def by_transformers(directory, samples):
    """Labelled positions' layer outputs [N, L, D] and logits [N, V], one sample at a time."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    last = []
    model.model.layers[-1].register_forward_hook(
        lambda module, args, out: last.append(out[0] if isinstance(out, tuple) else out)
    )
    layers, logits = [], []
    for sample in samples:
        with torch.no_grad():
            out = model(torch.tensor([sample["tokens"]]), output_hidden_states=True)
        # The last entry of hidden_states is after the final norm, which our last layer is not.
        states = torch.stack([*out.hidden_states[1:-1], last[-1].view_as(out.hidden_states[0])], 2)
        chosen = slice(3, len(sample["tokens"]) - 1)
        layers.append(states[0, chosen].double().numpy())
        logits.append(out.logits[0, chosen].numpy())
    return np.concatenate(layers), np.concatenate(logits)


def angles_between(points):
    unit = points / np.linalg.norm(points, axis=-1, keepdims=True)
    return np.degrees(np.arccos(np.clip(unit @ unit.swapaxes(-1, -2), -1, 1)))


@pytest.mark.parametrize("unit_length", [True, False])
def test_against_transformers(run, samples, unit_length, tmp_path):
    teacher, student = run.directories["teacher"], run.directories["student"]
    found = analyze(
        teacher, {"copied": student}, samples, PAD, tmp_path / "out", unit_length=unit_length
    )
    t_layers, t_logits = by_transformers(teacher, samples)
    s_layers, s_logits = by_transformers(student, samples)
    angles = found["layer_angles"]
    assert angles["num_tokens"] == len(t_logits) == 27
    expected = angles_between(t_layers)
    upper = np.triu_indices(6, 1)
    pairs = np.array(angles["between_teacher_layers"]["pairs"])
    np.testing.assert_allclose(pairs[upper], expected.mean(0)[upper], atol=1e-2)
    if unit_length:
        t_layers /= np.linalg.norm(t_layers, axis=-1, keepdims=True)
        s_layers /= np.linalg.norm(s_layers, axis=-1, keepdims=True)
    seen = angles["from_student_layers"]["copied"]
    for layer in range(2):
        expected = angles_between(t_layers - s_layers[:, layer : layer + 1])[:, *upper]
        assert seen["mean"][layer] == pytest.approx(expected.mean(), abs=1e-2)
        assert seen["acute_share"][layer] == pytest.approx((expected < 90).mean(), abs=2e-3)
    overlap = found["logit_overlap"]["copied"]["overlap_at_k"]
    for k in (1, 8, 128):
        both = zip(np.argsort(-t_logits)[:, :k], np.argsort(-s_logits)[:, :k], strict=True)
        shared = np.mean([len({*a} & {*b}) / k for a, b in both])
        assert overlap[k] == pytest.approx(shared, abs=1e-6)
    for name in ("layer_angles", "logit_overlap"):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert min(image.size) > 200
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10
        read = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert read == json.loads(json.dumps(found[name]))


def test_a_narrow_student_has_overlaps_but_no_angles(run, samples, tmp_path):
    narrow = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    teacher = run.directories["teacher"]
    student = init_student(
        teacher, tmp_path / "narrow", num_layers=2, mode="random_init", overrides=narrow
    )
    found = analyze(teacher, {"narrow": student, "itself": teacher}, samples, PAD, tmp_path / "out")
    assert list(found["layer_angles"]["from_student_layers"]) == ["itself"]
    assert set(found["logit_overlap"]["itself"]["overlap_at_k"].values()) == {1.0}
    assert 0 <= found["logit_overlap"]["narrow"]["overlap_at_k"][8] < 0.5


def test_angles_in_closed_form():
    points = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]])
    angles = Angles(3)
    angles.update(points)
    expected = torch.tensor([[0, 45, 180], [45, 0, 135], [180, 135, 0]], dtype=torch.float64)
    torch.testing.assert_close(angles.mean(), expected, atol=1e-4, rtol=0)
    assert angles.acute_share() == pytest.approx(1 / 3)
    assert angles.overall_mean() == pytest.approx(120)
    there = Angles(3)
    there.update(points, origin_ND=points[:, 0])
    assert math.isnan(there.mean()[0, 1]), "a layer that lies on the origin has no direction"
    assert there.mean()[1, 2] == pytest.approx(90, abs=1e-4)


def test_overlap_in_closed_form():
    teacher = torch.tensor([[5.0, 4.0, 3.0, 0.0], [9.0, 0.0, 1.0, 2.0]])
    student = torch.tensor([[4.0, 5.0, 0.0, 3.0], [9.0, 1.0, 0.0, 2.0]])
    overlap = Overlap([1, 2, 3])
    overlap.update(student, teacher)
    assert overlap.overlap() == pytest.approx({1: 1 / 2, 2: 1.0, 3: 2 / 3})
    assert overlap.agreement() == [None] * 6 + [0.0, None, None, 1.0], "p = 0.66 and 0.99"
    assert overlap.confidence() == [0, 0, 0, 0, 0, 0, 0.5, 0, 0, 0.5]
    with pytest.raises(ValueError, match="cannot be compared at k = 3"):
        overlap.update(student[:, :2], teacher[:, :2])


def test_mistakes_are_named(run, samples, tmp_path):
    teacher = run.directories["teacher"]
    masked = [{"tokens": s["tokens"], "labels": [-100] * len(s["tokens"])} for s in samples]
    with pytest.raises(ValueError, match="none of the 3 samples has a label"):
        analyze(teacher, {"same": teacher}, masked, PAD, tmp_path / "out")
    with pytest.raises(ValueError, match="at least one student"):
        analyze(teacher, {}, samples, PAD, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no such model directory"):
        analyze(teacher, {"none": tmp_path / "nowhere"}, samples, PAD, tmp_path / "out")


def test_recipe_takes_a_runs_config(run, tmp_path, monkeypatch):
    config = tmp_path / "run.yaml"
    OmegaConf.save(OmegaConf.create(run.config(tmp_path)), config)
    argv = ["kd_analyze", "--config", str(config), "analysis.num_samples=2"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stop:
        kd_analyze.main()
    assert not stop.value.code
    read = json.loads((tmp_path / "out" / "analysis" / "logit_overlap.json").read_text())
    assert read["num_samples"] == 2
    assert "before" in read
    assert "after" not in read
    monkeypatch.setattr(sys, "argv", [*argv, "analysis.num_sample=2"])
    with pytest.raises(ValueError, match=r"analysis\.num_sample .* did you mean num_samples"):
        kd_analyze.main()
    monkeypatch.setattr(sys, "argv", [*argv, "teacher_prompt=Be brief."])
    with pytest.raises(ValueError, match="config: teacher_prompt: the analysis reads"):
        kd_analyze.main()
    alone = ["teacher_model=null", "teacher_checkpointer=null", "kd_ratio=0", "layer_mapping=none"]
    monkeypatch.setattr(sys, "argv", [*argv, "loss_scaling.enabled=false", *alone])
    with pytest.raises(ValueError, match="analysis needs a teacher: set teacher_checkpointer"):
        kd_analyze.main()
