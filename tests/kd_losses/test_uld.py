"""The divergence between models of different vocabularies, against NumPy's sort in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from test_divergences import logits
from torch import Tensor

from kd_losses import ForwardKLLoss, LinearKDLoss, ULDLoss


def oracle(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """The mean over tokens, written from the paper."""
    sides = []
    for side in (student, teacher):
        p = -np.sort(-softmax(side.detach().double().numpy() / temperature, axis=-1), axis=-1)
        sides.append(np.pad(p, [(0, 0), (0, 5000 - p.shape[1])]))
    return float(np.abs(sides[0] - sides[1]).sum(-1).mean())


@settings(max_examples=40)
@given(
    sizes=st.tuples(st.integers(1, 60), st.integers(1, 4000)),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_values(sizes: tuple[int, int], temperature: float, scale: float, seed: int) -> None:
    loss, labels = ULDLoss(temperature=temperature), torch.zeros(3, dtype=torch.long)
    student, teacher = (logits(3, v, seed=seed + v, scale=scale) for v in sizes)
    for a, b in [(student, teacher), (teacher, student)]:
        value = loss(a.float(), b.float(), labels).item()
        assert value == pytest.approx(oracle(a, b, temperature), rel=1e-4, abs=1e-5)
        assert 0 <= value <= 2 + 1e-6


@pytest.mark.parametrize("sizes", [(7, 11), (11, 7), (9, 9)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradient(sizes: tuple[int, int], temperature: float) -> None:
    student, teacher = (logits(4, v, seed=v) for v in sizes)
    labels = torch.tensor([0, 1, -100, 3])
    loss = ULDLoss(temperature=temperature)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, labels), student.requires_grad_())


def test_which_token_is_likely_makes_no_difference() -> None:
    teacher, labels = logits(4, 30, seed=1), torch.zeros(4, dtype=torch.long)
    student = teacher[:, torch.randperm(30, generator=torch.Generator().manual_seed(2))]
    assert ULDLoss()(student, teacher, labels) < 1e-12
    excluded = torch.cat([teacher, torch.full((4, 70), -torch.inf)], dim=-1)
    assert ULDLoss()(student, excluded, labels) < 1e-12


@pytest.mark.parametrize("sizes", [(29, 5000), (5000, 29), (29, 29)])
@pytest.mark.parametrize("chunk_size", [1, 4, None])
def test_chunked_pass_is_the_pass_over_whole_logits(
    sizes: tuple[int, int], chunk_size: int | None
) -> None:
    hidden = [logits(13, width, seed=width) for width in (6, 8)]
    heads = [logits(v, width, seed=v + width) for v, width in zip(sizes, (6, 8), strict=True)]
    labels = torch.arange(13)
    labels[[2, 5]] = -100
    leaves = [hidden[0].requires_grad_(), heads[0].requires_grad_()]
    loss = LinearKDLoss(ULDLoss(), 0.3, 0.7, chunk_size)
    output = loss(hidden[0], heads[0], hidden[1], heads[1], labels)
    whole = hidden[0] @ heads[0].T
    ce = torch.nn.functional.cross_entropy(whole, labels, reduction="sum")
    kd = ULDLoss()(whole, hidden[1] @ heads[1].T, labels, normalize=False)
    torch.testing.assert_close(output.kd, kd.detach())
    torch.testing.assert_close(output.ce, ce.detach())
    grads = torch.autograd.grad(output.total, leaves)
    expected = torch.autograd.grad(0.3 * ce + 0.7 * kd, leaves)
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-11)


def test_extreme_logits_stay_finite() -> None:
    student, teacher = logits(4, 30, seed=1), logits(4, 50, seed=2)
    student[0, 3], teacher[1, 3], student[2, 0], teacher[3] = 1e4, 1e4, -1e4, 0.0
    leaf = student.float().requires_grad_()
    value = ULDLoss()(leaf, teacher.float(), torch.zeros(4, dtype=torch.long))
    (grad,) = torch.autograd.grad(value, leaf)
    assert value.isfinite()
    assert grad.isfinite().all()


def test_the_others_still_refuse_two_vocabularies() -> None:
    with pytest.raises(ValueError, match=r"student vocabulary 30 .* 5000"):
        ForwardKLLoss()(logits(4, 30, seed=1), logits(4, 5000, seed=2), torch.zeros(4).long())
