import math

import pytest

from kd_training.scaling import DynamicScales
from kd_training.schema import Scales


def test_each_part_contributes_its_share():
    scales = DynamicScales(Scales(0.5, 0.3, 0.2), ema=0.9)
    values = {"ce": 8.0, "kd": 0.02, "ir": 0.7}
    for _ in range(3):
        scales.update(values)
    weights = vars(scales.weights())
    contributions = {part: weights[part] * values[part] for part in values}
    total = sum(contributions.values())
    assert total == pytest.approx(sum(values.values()))
    assert [contributions[p] / total for p in ("ce", "kd", "ir")] == pytest.approx([0.5, 0.3, 0.2])


def test_weights_follow_a_part_that_shrinks():
    scales = DynamicScales(Scales(0.5, 0.5, 0.0), ema=0.5)
    scales.update({"ce": 4.0, "kd": 4.0})
    before = scales.weights()
    for _ in range(20):
        scales.update({"ce": 4.0, "kd": 1.0})
    after = scales.weights()
    assert before.kd == pytest.approx(before.ce)
    assert after.kd == pytest.approx(4 * after.ce, rel=1e-4)
    assert after.ir == 0


@pytest.mark.parametrize("values", [{"ce": 1.0, "kd": 0.0, "ir": 0.0}, {}])
def test_a_part_that_is_always_zero_does_no_harm(values):
    scales = DynamicScales(Scales(0.5, 0.3, 0.2), ema=0.9)
    scales.update(values)
    assert all(math.isfinite(w) for w in vars(scales.weights()).values())


def test_state_goes_on_where_it_was():
    first, second = (DynamicScales(Scales(1, 1, 1), ema=0.7) for _ in range(2))
    for step in range(5):
        first.update({"ce": 5.0 - step, "kd": 1.0 + step, "ir": 0.3})
    second.load_state_dict(first.state_dict())
    assert second.weights() == first.weights()


def test_a_run_logs_weights_that_balance_its_parts(make_trainer):
    shares = {"ce": 0.5, "kd": 0.3, "ir": 0.2}
    trainer = make_trainer({"loss_scaling.dynamic": {"shares": shares, "ema": 0.0}})
    batch = trainer.data.loader.collate_fn([trainer.data.loader.dataset[i] for i in (0, 1)])
    first, second = trainer.step([batch], 1), trainer.step([batch], 2)
    assert [first[f"weight/{part}"] for part in shares] == pytest.approx(list(shares.values()))
    # With no memory, the second step's weights balance the first step's parts exactly.
    balanced = {part: second[f"weight/{part}"] * first[part] for part in shares}
    total = sum(balanced.values())
    assert {p: v / total for p, v in balanced.items()} == pytest.approx(shares)
    assert second["total"] == pytest.approx(
        sum(second[f"weight/{part}"] * second[part] for part in shares)
    )
