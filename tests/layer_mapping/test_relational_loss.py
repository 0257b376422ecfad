"""The relations between a document's tokens, against NumPy in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layer_mapping import RelationalLoss, relational_loss


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(width, seed):
    return torch.linalg.qr(draw(width, width, seed=seed)).Q


def oracle(student, teacher, documents):
    """Written from the formula, one pair of tokens at a time."""
    s, t = (side.detach().double().numpy() for side in (student, teacher))

    def cos(x, i, j):
        return x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j]))

    total = 0.0
    for i, own in enumerate(documents):
        others = [j for j, other in enumerate(documents) if other == own]
        total += sum((cos(s, i, j) - cos(t, i, j)) ** 2 for j in others) / len(others)
    return total


def test_two_tokens_by_hand():
    student = torch.tensor([[1.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    teacher = torch.tensor([[2.0, 0.0, 0.0], [3.0, 0.0, 4.0]], dtype=torch.float64)
    # Cosines 0 and 0.6; each token is related to itself by 1 on both sides.
    assert RelationalLoss()(student, teacher).item() == pytest.approx(2 * 0.36 / 2, rel=1e-14)
    apart = RelationalLoss()(student, teacher, torch.tensor([0, 1]))
    assert apart.item() == pytest.approx(0, abs=1e-30)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.integers(0, 1000),
)
def test_values(documents, widths, seed):
    """Whatever the order in which the documents' tokens come."""
    student, teacher = (draw(len(documents), w, seed=seed + w) for w in widths)
    value = RelationalLoss()(student, teacher, torch.tensor(documents)).item()
    assert value == pytest.approx(oracle(student, teacher, documents), rel=1e-9, abs=1e-12)


def test_each_token_has_its_own_distance_in_its_own_place():
    student, teacher = draw(5, 3), draw(5, 4, seed=1)
    documents = torch.tensor([2, 0, 2, 0, 2])
    distances = RelationalLoss().distance_in_documents(student, teacher, documents)
    kept = distances[documents == 2]
    alone = RelationalLoss().distance_in_documents(
        student[documents == 2], teacher[documents == 2], torch.zeros(3, dtype=torch.int64)
    )
    torch.testing.assert_close(kept, alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_compared_in_fp32(dtype):
    student, teacher = draw(20, 8).to(dtype), draw(20, 12, seed=1).to(dtype)
    value = RelationalLoss()(student, teacher)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(oracle(student, teacher, [0] * 20), rel=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("block", [1, 12, 2**22])
def test_gradcheck(monkeypatch, layer_norm, block):
    """In one block and in several."""
    monkeypatch.setattr(relational_loss, "_BLOCK", block)
    student, teacher = draw(7, 4, seed=3).requires_grad_(), draw(7, 6, seed=4)
    documents, loss = torch.tensor([0, 0, 0, 1, 1, 1, 1]), RelationalLoss(layer_norm=layer_norm)
    assert torch.autograd.gradcheck(loss, (student, teacher, documents))


def test_memory_is_that_of_a_block(monkeypatch):
    """What the backward keeps grows with n, not with n²."""
    student, teacher = draw(200, 8).requires_grad_(), draw(200, 8, seed=1)
    results = []
    for block in (2**22, 1000):
        monkeypatch.setattr(relational_loss, "_BLOCK", block)
        kept = []
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x
        )
        with hooks:
            value = RelationalLoss()(student, teacher)
        results.append((value, torch.autograd.grad(value, student)[0]))
        assert max(kept) <= 200 * 8
    for whole, blocks in zip(*results, strict=True):
        torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-14)


def test_no_block_is_larger_than_the_limit(monkeypatch):
    monkeypatch.setattr(relational_loss, "_BLOCK", 1000)
    sizes, of_rows = [], relational_loss._of_rows

    def note(rows, *others):
        sizes.append(len(rows) * len(others[1]))
        return of_rows(rows, *others)

    monkeypatch.setattr(relational_loss, "_of_rows", note)
    RelationalLoss()(draw(300, 4), draw(300, 4))
    assert max(sizes) <= 1000
    assert sum(sizes) == 300 * 300


@pytest.mark.parametrize("layer_norm", [False, True])
def test_rotation_and_scale_of_either_side_are_irrelevant(layer_norm):
    student, teacher = draw(9, 4, seed=5), draw(9, 6, seed=6)
    value = RelationalLoss()(student, teacher)
    turned = RelationalLoss()(3 * student @ rotation(4, 7), teacher @ rotation(6, 8) / 5)
    torch.testing.assert_close(turned, value)
    # After a layer norm directions count again, but not shift and scale.
    loss = RelationalLoss(layer_norm=layer_norm)
    moved = loss(100 * student + 7 * layer_norm, 100 * teacher - 2 * layer_norm)
    torch.testing.assert_close(moved, loss(100 * student, 100 * teacher), rtol=1e-8, atol=0)


def test_student_equal_to_teacher_is_exactly_zero():
    student = draw(50, 33, dtype=torch.bfloat16).requires_grad_()
    value = RelationalLoss()(student, student.detach().clone())
    value.backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("zero", ["student", "teacher", "both"])
def test_zero_vectors_are_finite(layer_norm, zero):
    student, teacher = draw(4, 4, seed=7).float(), draw(4, 6, seed=8).float()
    if zero != "teacher":
        student[0] = 0
    if zero != "student":
        teacher[0] = 0
    student.requires_grad_()
    value = RelationalLoss(layer_norm=layer_norm)(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.abs().max() < 1e4
    if zero != "teacher":
        assert student.grad[0].abs().max() == 0
    assert student.grad[1].abs().max() > 0


def test_no_tokens_give_zero_with_a_graph():
    student = torch.zeros(0, 4, requires_grad=True)
    value = RelationalLoss()(student, torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert student.grad.shape == (0, 4)
