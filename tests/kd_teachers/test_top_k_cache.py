"""What a cache of the most probable tokens serves, how exactly, and what it refuses."""

import math

import pytest
import torch

from kd_losses import TopK

VOCABULARY = 320


def loss(name, **arguments):
    return {"kd_loss": {"_component_": f"kd_losses.{name}", **arguments}}


def top_k(k):
    return {"cache": {"logits": "top_k", "k": k}}


@pytest.mark.parametrize(
    "divergence",
    [loss("TopKKLLoss", top_k=5), loss("TopKKLLoss", top_k=16, temperature=3.0)],
    ids=["5", "16"],
)
def test_the_favourites_own_divergence_is_exact(divergence, teach, keep):
    live = teach(divergence, "live")
    kept = teach(divergence | {"teacher_cache": str(keep(divergence | top_k(16)))}, "kept")
    for ours, theirs in zip(kept, live, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["ForwardKLLoss", "ReverseKLLoss", "JSDistanceLoss"])
def test_with_all_tokens_every_divergence_of_probabilities_is_the_live_one(name, teach, keep):
    chosen = loss(name)
    live = teach(chosen, "live")
    kept = teach(chosen | {"teacher_cache": str(keep(chosen | top_k(VOCABULARY)))}, "kept")
    for ours, theirs in zip(kept, live, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["ForwardKLLoss", "ReverseKLLoss"])
def test_the_bucketed_divergence_loses_what_it_cannot_see_and_no_more(name, teach, keep):
    """KL(p‖q) − its bucketed form is the bucket's mass times the KL within it: in [0, P·log-ratio].

    The forward form's loss is p_B·KL(p|B ‖ q|B), which is at least 0; the more is kept, the less.
    """
    chosen = loss(name) | {"layer_mapping": "none"}
    live = teach(chosen, "live")[0]["kd"]
    kept = [
        teach(chosen | {"teacher_cache": str(keep(chosen | top_k(k), f"c{k}"))}, f"k{k}")[0]["kd"]
        for k in (4, 32, 128)
    ]
    assert kept == sorted(kept)
    assert kept[-1] <= live * (1 + 1e-5)
    assert live - kept[0] > 0


def test_half_the_bits_are_nearly_as_good(teach, keep):
    chosen = loss("ForwardKLLoss") | {"layer_mapping": "none"}
    wide = teach(chosen | {"teacher_cache": str(keep(chosen | top_k(64), "wide"))}, "wide_run")
    narrow = keep(chosen | top_k(64) | {"cache.log_probs": "fp16"}, "narrow")
    half = teach(chosen | {"teacher_cache": str(narrow)}, "narrow_run")
    # fp16 has 11 bits: a log-probability of -10 is off by at most 0.004, and weighs e^-10.
    assert half[0]["kd"] == pytest.approx(wide[0]["kd"], rel=2e-3)
    assert half[0]["kd"] != wide[0]["kd"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (loss("NormKDLoss"), "whole"),
        (loss("DKDLoss"), "whole"),
        (loss("TopKKLLoss", top_k=32), "32 most probable"),
        (loss("ForwardKLLoss", temperature=2.0), "temperature 2"),
        ({"layer_mapping": [[0, 3], [1, 5]]}, "decoder layer 3"),
    ],
    ids=["deviation of all", "the label's", "more favourites", "temperature", "a layer"],
)
def test_what_a_cache_has_not_is_refused_by_what_is_needed(changes, message, teach, keep):
    directory = keep(top_k(16) | {"layer_mapping": [[0, 1], [1, 5]]})
    given = {"layer_mapping": [[0, 1], [1, 5]]} | changes | {"teacher_cache": str(directory)}
    with pytest.raises(ValueError, match=message) as refusal:
        teach(given, "run")
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (loss("NormKDLoss"), "whole distribution"),
        (loss("TopKKLLoss", top_k=64), "64 most probable"),
        ({"loss_scaling.manual_scales": {"ce": 1.0, "kd": 0.0, "ir": 0.0}}, "nothing to keep"),
    ],
)
def test_what_could_never_serve_is_not_made(changes, message, keep, tmp_path):
    with pytest.raises(ValueError, match=message):
        keep(top_k(16) | changes)
    assert not (tmp_path / "cache").exists()


def test_the_rest_is_the_logarithm_of_what_is_left():
    logits = torch.randn(6, 50, dtype=torch.float64) * 4
    kept = TopK.of_logits(logits, 7, (1.0, 2.0))
    for row in range(6):
        p = logits[row].softmax(-1)
        chosen = sorted(range(50), key=lambda i: -p[i])[:7]
        assert kept.ids[row].tolist() == chosen
        left = [i for i in range(50) if i not in chosen]
        assert kept.rest[row, 0].item() == pytest.approx(math.log(sum(p[i] for i in left)))
        halves = math.log(sum(math.sqrt(p[i]) for i in left))
        assert kept.rest[row, 1].item() == pytest.approx(halves)
