"""An optimizer step: what it changes, and that a non-finite one changes nothing."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file

from kd_training.step import NonFiniteError

SCHEDULE = "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"


def micro_batches_of(loaded, *groups):
    loader = loaded.run.source.loader
    return [loader.collate_fn([loader.dataset[i] for i in group]) for group in groups]


def snapshot(loaded):
    """All that a step may change, as copies."""
    weights = [p.detach().clone() for p in loaded.step.parameters]
    return weights, copy.deepcopy(loaded.step.optimizer.state_dict()["state"])


def same(first, second):
    (weights, state), (other_weights, other_state) = first, second
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
    assert state.keys() == other_state.keys()
    for key, values in state.items():
        assert all(torch.equal(values[name], other_state[key][name]) for name in values)


def spoil_final_norm(loaded):
    """Pairs of layers are compared before it, so the labels' part is the first to be spoilt."""
    with torch.no_grad():
        loaded.run.student.module.norm.scale.fill_(torch.nan)


# part -> (overrides, what is done to the loaded run); calls 1 … 4 belong to a good first step.
FAULTS = {
    "ce": ({}, spoil_final_norm),
    "kd": ({"kd_loss": {"_component_": "faulty_parts.FaultyLoss", "nan_at": [4]}}, None),
    "ir/s1-t5": ({"ir_loss": {"_component_": "faulty_parts.FaultyPairs", "nan_at": 8}}, None),
    "grad_norm": (
        {"ir_loss": {"_component_": "faulty_parts.FaultyPairs", "nan_gradient_at": 7}},
        None,
    ),
}


@pytest.mark.parametrize("part", FAULTS)
def test_a_non_finite_part_is_named_before_anything_changes(make_run, part):
    overrides, spoil = FAULTS[part]
    scaling = {"loss_scaling.dynamic": {"ema": 0.5}}
    loaded = make_run(overrides | scaling)
    first, second = (micro_batches_of(loaded, *g) for g in (([0, 1], [2]), ([3], [4, 5])))
    values = loaded.step(first, 1)
    assert math.isfinite(values["grad_norm"])
    if spoil is not None:
        spoil(loaded)
    before, scales = snapshot(loaded), loaded.run.scales.state_dict()
    with pytest.raises(NonFiniteError, match=rf"^step 2: {part} is nan; no weight was") as error:
        loaded.step(second, 2)
    same(snapshot(loaded), before)
    assert loaded.run.scales.state_dict() == scales
    assert all(p.grad is None for p in loaded.step.parameters)

    dump = loaded.run.records.directory / "logs" / "nonfinite_step_2_rank_0.safetensors"
    assert str(dump) in str(error.value)
    assert "skip_nonfinite_steps" in str(error.value)
    kept = load_file(dump)
    assert len(kept) == sum(len(batch.tensors()) for batch in second)
    for i, batch in enumerate(second):
        named = batch.tensors().items()
        assert all(torch.equal(kept[f"{i}.{name}"], tensor) for name, tensor in named)
        assert torch.equal(kept[f"{i}.tokens"], batch.inputs["tokens"])


def test_the_step_after_a_bad_one_is_a_good_one(make_run):
    """A skipped step is as one whose rate is 0: the schedule moves on, and nothing else."""
    overrides = {
        "lr_scheduler": {"_component_": SCHEDULE, "num_warmup_steps": 1},
        "optimizer": {"_component_": "torch.optim.SGD", "lr": 0.1},
        "epochs": 4,
    }
    loss = {"_component_": "faulty_parts.FaultyLoss"}
    faulty = make_run(overrides | {"kd_loss": loss | {"nan_at": [1]}})
    good = make_run(overrides | {"kd_loss": loss})
    for ours, theirs in zip(faulty.step.parameters, good.step.parameters, strict=True):
        ours.data.copy_(theirs.data)
    batches = micro_batches_of(faulty, [0, 1])
    with pytest.raises(NonFiniteError, match="kd is nan"):
        faulty.step(batches, 1)
    assert good.step(batches, 1)["lr"] == 0
    before = snapshot(good)
    assert faulty.step(batches, 2) == good.step(batches, 2)
    same(snapshot(faulty), snapshot(good))
    assert not all(torch.equal(a, b) for a, b in zip(before[0], snapshot(good)[0], strict=True))


def test_a_dump_that_cannot_be_written_hides_nothing(make_run):
    loaded = make_run({"kd_loss": {"_component_": "faulty_parts.FaultyLoss", "nan_at": [1]}})
    loaded.run.records.directory.mkdir()
    (loaded.run.records.directory / "logs").write_text("a file where the folder should be")
    with pytest.raises(NonFiniteError, match=r"^step 1: kd is nan; .*could not be kept"):
        loaded.step(micro_batches_of(loaded, [0, 1]), 1)


def test_clipping_limits_the_update_and_reports_the_norm_before(make_run):
    """Plain gradient descent at rate 1: the update is the gradient itself."""
    updates, norms = {}, {}
    for max_norm in (None, 0.25, 1e6):
        overrides = {"optimizer": {"_component_": "torch.optim.SGD", "lr": 1.0}}
        loaded = make_run(overrides | {"clip_grad_norm": max_norm})
        generator = torch.Generator().manual_seed(0)
        for parameter in loaded.step.parameters:
            parameter.data.normal_(std=0.1, generator=generator)
        before, _ = snapshot(loaded)
        norms[max_norm] = loaded.step(micro_batches_of(loaded, [0, 1], [2, 3]), 1)["grad_norm"]
        after, _ = snapshot(loaded)
        pairs = zip(before, after, strict=True)
        updates[max_norm] = torch.cat([(b.double() - a.double()).flatten() for b, a in pairs])
    assert norms[None] == norms[0.25] == norms[1e6] > 0.25
    assert updates[None].norm().item() == pytest.approx(norms[None], rel=1e-5)
    assert updates[0.25].norm().item() == pytest.approx(0.25, rel=1e-4)
    torch.testing.assert_close(
        updates[0.25] / 0.25, updates[None] / norms[None], rtol=1e-3, atol=1e-5
    )
    assert torch.equal(updates[1e6], updates[None])


def test_tokens_are_the_labels_of_all_micro_batches(make_run):
    loaded = make_run()
    batches = micro_batches_of(loaded, [0, 1], [2, 3])
    labels = sum(len(loaded.run.source.loader.dataset[i]["tokens"]) - 1 for i in range(4))
    assert loaded.step(batches, 1)["num_tokens"] == labels


ONLY_LAYERS = {"loss_scaling.manual_scales": {"ce": 0.0, "kd": 0.0, "ir": 1.0}}
OFFLOADED = {
    "every part": {},
    "projections": {"layer_projection": {"mode": "always"}},
    "a matched layer alone": ONLY_LAYERS | {"layer_mapping": [[0, 1]]},
    "DoRA": {"model.use_dora": True},
    "bf16": {"dtype": "bf16"},
}


@pytest.mark.parametrize("case", OFFLOADED)
def test_offloaded_activations_change_nothing(make_run, fetched, case):
    overrides = OFFLOADED[case] | {"enable_activation_checkpointing": True}
    results = []
    for offloading in (False, True):
        loaded = make_run(overrides | {"enable_activation_offloading": offloading})
        batches = [micro_batches_of(loaded, *g) for g in (([0, 1], [2]), ([3], [4, 5]))]
        values = [loaded.step(batch, i + 1) for i, batch in enumerate(batches)]
        results.append((values, snapshot(loaded)))
        if not offloading:
            assert not fetched
    assert results[0][0] == results[1][0]
    same(results[0][1], results[1][1])
    of_layers = [shape for shape in fetched if len(shape) == 3]
    assert len(of_layers) >= len(loaded.run.student.module.layers) * sum(map(len, batches))
    tokens = [int(batch.inputs["lengths"].sum()) for step in batches for batch in step]
    rows = {(1, -(-number // 16) * 16) for number in tokens}
    assert {shape[:2] for shape in of_layers} == rows, "no weight was moved"


def test_without_checkpointing_weights_would_be_offloaded_too(make_run, fetched):
    """Why the one is refused without the other."""
    loaded = make_run({"enable_activation_offloading": True, "model.use_dora": True})
    loaded.step(micro_batches_of(loaded, [0, 1]), 1)
    layer = loaded.run.student.module.layers[0]
    assert {tuple(p.shape[::-1]) for p in (layer.mlp.w1.weight, layer.mlp.w2.weight)} <= {*fetched}
