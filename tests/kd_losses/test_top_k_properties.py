"""What holds of every divergence of a teacher's top k, whatever the logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kd_loss_cases import Case
from kept_cases import every_distribution, randn

import kd_losses
from kd_losses import CrossEntropy, Divergence, Head, Projected, Scoped, TopK, chunked_sums

# An f-divergence of merged categories is never larger.
F_DIVERGENCES = [
    "ForwardKLLoss", "ReverseKLLoss", "SymmetricKLLoss", "JSDistanceLoss", "TVDistanceLoss",
    "SkewForwardKLLoss", "SkewReverseKLLoss",
]  # fmt: skip


@pytest.mark.parametrize("name", F_DIVERGENCES)
@settings(max_examples=15)
@given(
    vocab=st.integers(3, 40),
    scale=st.sampled_from([0.1, 2.0, 15.0]),
    temperature=st.sampled_from([1.0, 0.5, 4.0]),
    seed=st.integers(0, 1000),
)
def test_the_more_is_kept_the_more_is_seen(name, vocab, scale, temperature, seed) -> None:
    loss = getattr(kd_losses, name)(temperature=temperature)
    student, teacher = (randn(5, vocab, seed=seed + i, scale=scale) for i in (0, 1))
    whole = loss.per_token(student, teacher, None)
    seen = [
        loss.per_token_top_k(student, TopK.of_logits(teacher, k, (temperature,)), None)
        for k in (1, vocab // 2, vocab - 1, vocab)
    ]
    for fewer, more in zip([torch.zeros(5).double(), *seen], [*seen, whole], strict=True):
        assert (fewer <= more + 1e-10 * (1 + more)).all()
    torch.testing.assert_close(seen[-1], whole, rtol=1e-9, atol=1e-12)


EXTREMES = st.sampled_from([0.0, 1.0, -90.0, 200.0, 1e4, -1e4, 1e20, -1e20])


@every_distribution
@settings(max_examples=40)
@given(
    student=st.lists(EXTREMES, min_size=6, max_size=6),
    teacher=st.lists(EXTREMES, min_size=6, max_size=6),
    k=st.sampled_from([1, 3, 6]),
    label=st.integers(0, 5),
)
def test_extreme_logits_give_no_nan(case: Case, student, teacher, k: int, label: int) -> None:
    kept = TopK.of_logits(torch.tensor([teacher]), k, (1.0, 2.0))
    rows = Projected(torch.tensor([student]).requires_grad_(), Head(torch.eye(6)))
    everywhere, labels = torch.tensor([True]), torch.tensor([label])
    for temperature in (1.0, 2.0):
        kd = Divergence(case.make(temperature))
        terms = [Scoped(CrossEntropy(), everywhere, 1.0), Scoped(kd, everywhere, 1.0)]
        result = chunked_sums(rows, kept, labels, terms)
        (grad,) = torch.autograd.grad(result.total, rows.hidden)
        assert torch.stack([*result.sums, *grad[0]]).isfinite().all()
