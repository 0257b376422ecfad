import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from layer_mapping import CosineLoss, MSELoss, NormalizedMSELoss

LOSSES = [CosineLoss, MSELoss, NormalizedMSELoss]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def one_token(vector):
    return torch.tensor([vector], dtype=torch.float64)


@pytest.mark.parametrize(
    ("student", "teacher", "cosine", "mse"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0, 0.0),
        ([3.0, 4.0], [30.0, 40.0], 0.0, (27**2 + 36**2) / 2),
        ([3.0, 4.0], [-3.0, -4.0], 2.0, (36 + 64) / 2),
        ([3.0, 4.0], [4.0, -3.0], 1.0, (1 + 49) / 2),
        ([1.0, 0.0], [1.0, 1.0], 1 - math.sqrt(0.5), 0.5),
    ],
)
def test_one_token_by_hand(student, teacher, cosine, mse):
    sides = one_token(student), one_token(teacher)
    assert CosineLoss()(*sides).item() == pytest.approx(cosine, abs=1e-15)
    assert NormalizedMSELoss()(*sides).item() == pytest.approx(2 * cosine, abs=1e-15)
    assert MSELoss()(*sides).item() == pytest.approx(mse, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_against_torch(dtype):
    student, teacher = draw(7, 5, seed=1).to(dtype), draw(7, 5, seed=2).to(dtype)
    exact = student.double(), teacher.double()
    cosine = (1 - F.cosine_similarity(*exact)).sum()
    mse = F.mse_loss(*exact, reduction="sum") / 5
    # bf16 inputs are exact in fp32, so both have fp32's error.
    tolerance = {"rtol": 1e-14 if dtype == torch.float64 else 1e-6, "atol": 0}
    for loss, expected in ((CosineLoss, cosine), (NormalizedMSELoss, 2 * cosine), (MSELoss, mse)):
        value = loss()(student, teacher)
        assert value.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(value.double(), expected, **tolerance)


def test_gradients_in_closed_form():
    student, teacher = draw(7, 5, seed=1).requires_grad_(), draw(7, 5, seed=2)
    s, t = student.detach(), teacher
    s_norm, t_norm = s.norm(dim=1, keepdim=True), t.norm(dim=1, keepdim=True)
    cos = (s * t).sum(1, keepdim=True) / (s_norm * t_norm)
    cosine_gradient = (cos * s / s_norm - t / t_norm) / s_norm
    expected = {
        CosineLoss: cosine_gradient,
        NormalizedMSELoss: 2 * cosine_gradient,
        MSELoss: 2 * (s - t) / 5,
    }
    for loss, gradient in expected.items():
        (actual,) = torch.autograd.grad(loss()(student, teacher), student)
        torch.testing.assert_close(actual, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss, layer_norm):
    student, teacher = draw(4, 6, seed=3).requires_grad_(), draw(4, 6, seed=4)
    assert torch.autograd.gradcheck(loss(layer_norm=layer_norm), (student, teacher))


@pytest.mark.parametrize("loss", LOSSES)
def test_layer_norm_makes_shift_and_scale_of_either_side_irrelevant(loss):
    student, teacher = 100 * draw(4, 64, seed=3), 100 * draw(4, 64, seed=4)
    value = loss(layer_norm=True)(student, teacher)
    moved = loss(layer_norm=True)(3 * student - 7, 5 * teacher + 2)
    # torch's layer norm has an epsilon beside the variance of 10⁴.
    torch.testing.assert_close(moved, value, rtol=1e-8, atol=0)
    assert not torch.isclose(loss()(3 * student - 7, 5 * teacher + 2), value, rtol=1e-3)
    by_hand = [(x - x.mean(1, keepdim=True)) / x.std(1, False, True) for x in (student, teacher)]
    torch.testing.assert_close(loss()(*by_hand), value, rtol=1e-8, atol=0)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 1000), st.booleans())
def test_normalized_mse_is_twice_cosine(num_tokens, width, seed, layer_norm):
    sides = draw(num_tokens, width, seed=seed), draw(num_tokens, width, seed=seed + 1)
    options = {"layer_norm": layer_norm}
    twice = 2 * CosineLoss(**options)(*sides)
    torch.testing.assert_close(NormalizedMSELoss(**options)(*sides), twice, rtol=1e-15, atol=0)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_student_equal_to_teacher_is_exactly_zero(loss, layer_norm):
    student = draw(50, 33, dtype=torch.bfloat16).requires_grad_()
    value = loss(layer_norm=layer_norm)(student, student.detach().clone())
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_tokens_add_up(loss):
    student, teacher = draw(9, 5, seed=5), draw(9, 5, seed=6)
    parts = [loss()(student[part], teacher[part]) for part in (slice(4), slice(4, 9))]
    torch.testing.assert_close(sum(parts), loss()(student, teacher))


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("zero", ["student", "teacher", "both"])
def test_zero_vectors_are_finite(loss, layer_norm, zero):
    student, teacher = draw(2, 4, seed=7).float(), draw(2, 4, seed=8).float()
    if zero != "teacher":
        student[0] = 0
    if zero != "student":
        teacher[0] = 0
    student.requires_grad_()
    value = loss(layer_norm=layer_norm)(student, teacher)
    value.backward()
    assert value.isfinite()
    # Not only finite: a huge gradient would wreck the step as well.
    assert student.grad.abs().max() < 1e4
    if loss is not MSELoss and not layer_norm and zero != "teacher":
        assert student.grad[0].abs().max() == 0
    assert student.grad[1].abs().max() > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_no_tokens_give_zero_with_a_graph(loss):
    student = torch.zeros(0, 4, requires_grad=True)
    value = loss()(student, torch.zeros(0, 4))
    value.backward()
    assert value.item() == 0
    assert student.grad.shape == (0, 4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "average"}, "reduction must be one of mean, sum, not 'average'"),
        ({"pair_weights": [1, -1]}, r"non-negative and not all 0, not \[1, -1\]"),
        ({"pair_weights": [0, 0]}, "not all 0"),
        ({"pair_weights": []}, "not all 0"),
        ({"pair_weights": [1, math.nan]}, "non-negative"),
    ],
)
def test_wrong_options(loss, options, message):
    with pytest.raises(ValueError, match=message):
        loss(**options)
