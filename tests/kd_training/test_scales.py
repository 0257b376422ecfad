import json
import math
from itertools import pairwise

import pytest

from kd_training.objective.scales import DynamicScales


def test_each_part_contributes_its_share():
    scales = DynamicScales({"ce": 0.5, "kd": 0.3, "ir": 0.2}, ema=0.9, max_weight=1000)
    values = {"ce": 8.0, "kd": 0.02, "ir": 0.7}
    for _ in range(3):
        scales.update(values)
    weights = scales.weights()
    contributions = {part: weights[part] * values[part] for part in values}
    total = sum(contributions.values())
    assert total == pytest.approx(sum(values.values()))
    assert [contributions[p] / total for p in ("ce", "kd", "ir")] == pytest.approx([0.5, 0.3, 0.2])


def test_weights_follow_a_part_that_shrinks():
    scales = DynamicScales({"ce": 0.5, "kd": 0.5, "ir": 0.0}, ema=0.5, max_weight=100)
    scales.update({"ce": 4.0, "kd": 4.0})
    before = scales.weights()
    for _ in range(20):
        scales.update({"ce": 4.0, "kd": 1.0})
    after = scales.weights()
    assert before["kd"] == pytest.approx(before["ce"])
    assert after["kd"] == pytest.approx(4 * after["ce"], rel=1e-4)
    assert after["ir"] == 0


def weights_after(values, shares=(0.5, 0.3, 0.2), max_weight=100):
    scales = DynamicScales(
        dict(zip(("ce", "kd", "ir"), shares, strict=True)), ema=0.9, max_weight=max_weight
    )
    scales.update(values)
    return scales.weights()


@pytest.mark.parametrize("tiny", [1e-9, 1e-320, 0.0, -1e-9])
def test_no_weight_exceeds_the_bound(tiny):
    """However little there is of a part; the others keep their shares of the sum."""
    weights = weights_after({"ce": 6.0, "kd": tiny, "ir": 2.0}, max_weight=50)
    expected = {"ce": 0.5 * 8 / 6, "kd": 0.3 * 50, "ir": 0.2 * 8 / 2}
    assert weights == pytest.approx(expected, rel=1e-8)


def test_the_bound_is_reached_without_a_jump():
    """On both sides of it a part that changes by a thousandth changes its weight by no more."""
    smallest = 3.0 / 99  # of a sum of 3 + m, the hundredth part
    near = [smallest * (1 + k / 1000) for k in range(-5, 6)]
    weights = [weights_after({"ce": 3.0, "kd": kd}, (0.5, 0.5, 0.0))["kd"] for kd in near]
    assert weights[:6] == pytest.approx([50] * 6)
    assert weights == sorted(weights, reverse=True)
    assert all(a - b <= 0.0011 * a for a, b in pairwise(weights))
    assert weights[-1] < 49.8


@pytest.mark.parametrize("values", [{"ce": 0.0, "kd": -1e-9, "ir": 0.0}, {}])
def test_without_any_magnitude_the_weights_are_the_shares(values):
    assert weights_after(values) == {"ce": 0.5, "kd": 0.3, "ir": 0.2}


def test_state_goes_on_where_it_was():
    first, second = (
        DynamicScales({"ce": 1, "kd": 1, "ir": 1}, ema=0.7, max_weight=100) for _ in range(2)
    )
    for step in range(5):
        first.update({"ce": 5.0 - step, "kd": 1.0 + step, "ir": 0.3})
    second.load_state_dict(first.state_dict())
    assert second.weights() == first.weights()


def test_a_run_logs_weights_that_balance_its_parts(make_run):
    shares = {"ce": 0.5, "kd": 0.3, "ir": 0.2}
    loaded = make_run({"loss_scaling.dynamic": {"shares": shares, "ema": 0.0}})
    batch = loaded.run.source.loader.collate_fn(
        [loaded.run.source.loader.dataset[i] for i in (0, 1)]
    )
    first, second = loaded.step([batch], 1), loaded.step([batch], 2)
    assert [first[f"weight/{part}"] for part in shares] == pytest.approx(list(shares.values()))
    # With no memory, the second step's weights balance the first step's parts exactly.
    balanced = {part: second[f"weight/{part}"] * first[part] for part in shares}
    total = sum(balanced.values())
    assert {p: v / total for p, v in balanced.items()} == pytest.approx(shares)
    assert second["total"] == pytest.approx(
        sum(second[f"weight/{part}"] * second[part] for part in shares)
    )


def test_a_student_that_begins_as_its_teacher(make_run):
    """Its divergence is 0 but for rounding, and nothing to scale up to a third of the loss."""
    shares = {"ce": 0.5, "kd": 0.3, "ir": 0.2}
    scaling = {"loss_scaling.dynamic": {"shares": shares, "max_weight": 40}}
    loaded = make_run(scaling, student="teacher")
    loaded.train()
    log = (loaded.run.records.directory / "logs" / "metrics.jsonl").read_text().splitlines()
    first, *later = [step for step in map(json.loads, log) if "total" in step]
    assert abs(first["kd"]) < 1e-5
    assert [first[f"weight/{part}"] for part in shares] == list(shares.values())
    assert later
    for step in later:
        assert math.isfinite(step["total"])
        assert math.isfinite(step["grad_norm"])
        for part, share in shares.items():
            assert 0 < step[f"weight/{part}"] <= 40 * share
    assert later[0]["weight/kd"] == 40 * 0.3
