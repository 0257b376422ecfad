"""Values and gradients of every divergence on given logits."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kd_loss_cases import CASES, Case, every_case, every_temperature
from torch import Tensor

import kd_losses

N, V = 7, 23


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def labels_for(num: int, vocab_size: int = V) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    labels = torch.randint(vocab_size, (num,), generator=generator)
    labels[1::3] = -100
    return labels


def oracle_values(
    case: Case, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0
) -> Tensor:
    rows = zip(teacher.double().numpy(), student.double().numpy(), labels.tolist(), strict=True)
    return torch.tensor(
        [case.oracle(t, s, None if y == -100 else y, temperature) for t, s, y in rows],
        dtype=torch.float64,
    )


@every_case
@every_temperature
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_value_is_the_papers(
    case: Case, temperature: float, dtype: torch.dtype, rtol: float
) -> None:
    student, teacher, labels = logits(N, V, seed=1), logits(N, V, seed=2), labels_for(N)
    values = case.make(temperature).per_token(student.to(dtype), teacher.to(dtype), labels)
    expected = oracle_values(case, student, teacher, labels, temperature)
    torch.testing.assert_close(values.double(), expected, rtol=rtol, atol=1e-9)


@every_case
@every_temperature
def test_gradient_matches_finite_differences(case: Case, temperature: float) -> None:
    loss = case.make(temperature)
    student = logits(4, 11, seed=1).requires_grad_()
    teacher, labels = logits(4, 11, seed=2), labels_for(4, 11)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, labels), student)


@every_case
@settings(max_examples=25)
@given(
    num=st.integers(1, 5),
    vocab_size=st.integers(9, 60),
    scale=st.sampled_from([0.01, 1.0, 10.0]),
    weight=st.sampled_from([1.0, 0.3]),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
    seed=st.integers(0, 1000),
)
def test_closed_form_gradient_is_autograds(
    case: Case,
    num: int,
    vocab_size: int,
    scale: float,
    weight: float,
    temperature: float,
    seed: int,
) -> None:
    loss = case.make(temperature)
    student = logits(num, vocab_size, seed=seed, scale=scale).requires_grad_()
    teacher = logits(num, vocab_size, seed=seed + 1, scale=scale)
    labels = labels_for(num, vocab_size)
    expected = loss.per_token(student, teacher, labels)
    (expected_grad,) = torch.autograd.grad(weight * expected.sum(), student)
    value, grad = loss.per_token_and_grad(student.detach().clone(), teacher.clone(), labels, weight)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-8, atol=1e-12)


@every_case
@settings(max_examples=25)
@given(scale=st.sampled_from([1e-3, 0.1, 1.0, 30.0]), seed=st.integers(0, 1000))
def test_bounds_and_equality(case: Case, scale: float, seed: int) -> None:
    loss = case.make()
    student, teacher = logits(N, V, seed=seed, scale=scale), logits(N, V, seed=seed + 1)
    labels = labels_for(N)
    value = loss.per_token(student.float(), teacher.float(), labels)
    assert (value <= case.bound + 1e-6).all()
    assert (value >= (-2e-6 if case.zero_when_equal else 0)).all()
    same = teacher.float().requires_grad_()
    equal = loss.per_token(same, teacher.float(), labels)
    (grad,) = torch.autograd.grad(equal.sum(), same)
    assert (equal.abs().max() < 1e-6) == case.zero_when_equal
    # The student's best answer is the teacher's, whether or not the loss is 0 there.
    assert grad.abs().max() < 1e-5 or not case.zero_when_equal


@every_case
def test_a_constant_added_to_the_logits_changes_nothing(case: Case) -> None:
    loss, labels = case.make(2.0), labels_for(N)
    student, teacher = logits(N, V, seed=1), logits(N, V, seed=2)
    expected = loss(student, teacher, labels)
    shift = logits(N, 1, seed=3, scale=100.0)
    for args in [(student + shift, teacher), (student, teacher - shift)]:
        torch.testing.assert_close(loss(*args, labels), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("near", "scale", "limit"),
    [
        (kd_losses.SymmetricKLLoss(lambda_weight=0.0), 1.0, kd_losses.ForwardKLLoss()),
        (kd_losses.SymmetricKLLoss(lambda_weight=1.0), 1.0, kd_losses.ReverseKLLoss()),
        (kd_losses.SkewForwardKLLoss(alpha=1e-7), 1.0, kd_losses.ForwardKLLoss()),
        (kd_losses.SkewReverseKLLoss(alpha=1e-7), 1.0, kd_losses.ReverseKLLoss()),
        (kd_losses.JSDistanceLoss(lambda_weight=1e-7), 1e-7, kd_losses.ReverseKLLoss()),
        (kd_losses.JSDistanceLoss(lambda_weight=1 - 1e-7), 1e-7, kd_losses.ForwardKLLoss()),
        (kd_losses.AlphaBetaLoss(alpha=1.0, beta=1e-7), 1.0, kd_losses.ForwardKLLoss()),
        (kd_losses.AlphaBetaLoss(alpha=1e-7, beta=1.0), 1.0, kd_losses.ReverseKLLoss()),
        (kd_losses.TopKKLLoss(top_k=V), 1.0, kd_losses.ForwardKLLoss()),
        (kd_losses.TopKKLLoss(top_k=10 * V), 1.0, kd_losses.ForwardKLLoss()),
    ],
    ids=lambda x: x if isinstance(x, float) else f"{type(x).__name__}({x.extra_repr()})",
)
def test_limits(near: kd_losses.KDLoss, scale: float, limit: kd_losses.KDLoss) -> None:
    student, teacher = logits(N, V, seed=1, scale=1.0), logits(N, V, seed=2, scale=1.0)
    labels = labels_for(N)
    expected = limit.per_token(student, teacher, labels)
    torch.testing.assert_close(
        near.per_token(student, teacher, labels) / scale, expected, rtol=1e-5, atol=0
    )


def small_divergence_logits() -> tuple[Tensor, Tensor, Tensor]:
    """bf16 logits of 64 tokens over 5000 ids whose forward KL is about 3e-3."""
    teacher = logits(384, 5000, seed=1, scale=2.5)
    student = (teacher + logits(384, 5000, seed=2, scale=0.08)).bfloat16()
    teacher = teacher.bfloat16()
    # Equal logits leave open which of them are the largest few, and in what order.
    clear = ~(_has_ties(student) | _has_ties(teacher))
    return student[clear][:64], teacher[clear][:64], torch.arange(64)


def _has_ties(x: Tensor) -> Tensor:
    return (x.topk(9).values.diff() == 0).any(-1)


def test_the_small_divergence_is_small() -> None:
    loss = kd_losses.ForwardKLLoss()
    student, teacher, labels = small_divergence_logits()
    assert 2e-3 < loss(student.double(), teacher.double(), labels) < 4e-3


@every_case
def test_bf16_logits_lose_less_than_one_percent(case: Case) -> None:
    student, teacher, labels = small_divergence_logits()
    expected = oracle_values(case, student, teacher, labels).mean()
    value = case.make()(student, teacher, labels)
    assert value.dtype == torch.float32
    assert abs(value.item() / expected.item() - 1) < 0.01


@every_case
@every_temperature
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(case: Case, temperature: float, dtype: torch.dtype) -> None:
    loss, labels = case.make(temperature), torch.zeros(6, dtype=torch.long)
    student, teacher = logits(6, V, seed=1).to(dtype), logits(6, V, seed=2).to(dtype)
    student[0, 3], teacher[1, 3], student[2, 0], teacher[3, 0] = 1e4, 1e4, -1e4, -1e4
    student[4], teacher[5] = 0.0, -1e4
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher, labels)
    (grad,) = torch.autograd.grad(value, leaf)
    per_token, closed_form = loss.per_token_and_grad(
        student.float(), teacher.float(), labels, weight=1.0
    )
    for tensor in (value, grad, per_token, closed_form):
        assert tensor.isfinite().all()
    assert grad.any()


@every_case
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_ids_at_minus_infinity_leave_the_vocabulary(case: Case, side: str) -> None:
    """As if they had never been there, whichever model excludes them."""
    loss, labels = case.make(), torch.zeros(N, dtype=torch.long)
    student, teacher = logits(N, V, seed=1), logits(N, V, seed=2)
    keep = [i for i in range(V) if i not in (4, 9, V - 1)]
    expected = loss(student[:, keep], teacher[:, keep], labels)
    for name, tensor in (("student", student), ("teacher", teacher)):
        if side in (name, "both"):
            tensor[:, [4, 9, V - 1]] = -torch.inf
    student.requires_grad_()
    value = loss(student, teacher, labels)
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(value, student)
    assert grad.isfinite().all()
    assert not grad[:, [4, 9, V - 1]].any()


@every_case
def test_padding_ids_of_either_side_are_cut(case: Case) -> None:
    loss, labels = case.make(), labels_for(N)
    student, teacher = logits(N, V + 8, seed=1), logits(N, V + 8, seed=2)
    expected = loss(student[:, :V], teacher[:, :V], labels)
    assert loss(student, teacher[:, :V], labels) == expected
    assert loss(student[:, :V], teacher, labels) == expected


def test_two_vocabularies_are_refused() -> None:
    loss, labels = kd_losses.ForwardKLLoss(), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"151936.*128256.*tokenizer"):
        loss(torch.zeros(1, 151936), torch.zeros(1, 128256), labels)


@every_case
def test_batched_and_flat_shapes_agree(case: Case) -> None:
    loss, labels = case.make(), labels_for(12)
    student, teacher = logits(12, V, seed=1), logits(12, V, seed=2)
    batched = loss(student.view(3, 4, V), teacher.view(3, 4, V), labels.view(3, 4))
    torch.testing.assert_close(batched, loss(student, teacher, labels), rtol=1e-12, atol=0)


@every_case
def test_sums_of_parts_are_the_sum_and_the_mean_counts_labels(case: Case) -> None:
    loss, labels = case.make(), labels_for(12)
    student, teacher = logits(12, V, seed=1), logits(12, V, seed=2)
    whole = loss(student, teacher, labels, normalize=False)
    cuts = [0, 1, 2, 7, 12]
    parts = [
        loss(student[a:b], teacher[a:b], labels[a:b], normalize=False) for a, b in pairwise(cuts)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=0)
    mean = loss(student, teacher, labels)
    torch.testing.assert_close(mean * (labels != -100).sum(), whole, rtol=1e-12, atol=0)


@every_case
@pytest.mark.parametrize("normalize", [True, False])
def test_nothing_labelled_is_zero_with_zero_gradient(case: Case, normalize: bool) -> None:
    student = logits(2, 4, V).requires_grad_()
    value = case.make(ignore_index=-1)(
        student, logits(2, 4, V, seed=2), torch.full((2, 4), -1), normalize
    )
    value.backward()
    assert value == 0
    assert student.grad is not None
    assert not student.grad.any()


@every_case
def test_no_gradient_reaches_the_teacher(case: Case) -> None:
    teacher = logits(N, V, seed=2).requires_grad_()
    student = logits(N, V, seed=1).requires_grad_()
    case.make()(student, teacher, labels_for(N)).backward()
    assert teacher.grad is None


def test_dkd_without_a_label_splits_at_the_teachers_favourite() -> None:
    student, teacher = logits(N, V, seed=1), logits(N, V, seed=2)
    loss = kd_losses.DKDLoss()
    unlabelled = torch.full((N,), -100)
    torch.testing.assert_close(
        loss.per_token(student, teacher, unlabelled),
        loss.per_token(student, teacher, teacher.argmax(-1)),
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *((case.name, {"temperature": 0.0}) for case in CASES if case.takes_temperature),
        ("SymmetricKLLoss", {"lambda_weight": 1.1}),
        ("JSDistanceLoss", {"lambda_weight": 1.0}),
        ("JSDistanceLoss", {"lambda_weight": 0.0}),
        ("SkewForwardKLLoss", {"alpha": 0.0}),
        ("SkewReverseKLLoss", {"alpha": 1.0}),
        ("AlphaBetaLoss", {"alpha": 0.0}),
        ("AlphaBetaLoss", {"beta": -1.0}),
        ("TopKKLLoss", {"top_k": 1}),
        ("BiLDLoss", {"top_k": 2}),
        ("DKDLoss", {"alpha": -1.0}),
        ("DKDLoss", {"beta": -1.0}),
        ("DKDLoss", {"t_norm": 0.0}),
        ("NKDLoss", {"gamma": -0.1}),
        ("NormKDLoss", {"t_norm": -1.0}),
    ],
)
def test_bad_parameters_are_named(name: str, parameters: dict[str, float]) -> None:
    ((key, value),) = parameters.items()
    with pytest.raises(ValueError, match=rf"^{key} must be .*, got {value}$"):
        getattr(kd_losses, name)(**parameters)


@pytest.mark.parametrize(
    ("teacher_shape", "labels_shape"), [((4, V), (5,)), ((5, V), (4,)), ((5, V), (5, 1))]
)
def test_shapes_that_do_not_fit_are_refused(
    teacher_shape: tuple[int, ...], labels_shape: tuple[int, ...]
) -> None:
    labels = torch.zeros(labels_shape, dtype=torch.long)
    with pytest.raises(ValueError, match=r"got student \[5, 23\]"):
        kd_losses.ForwardKLLoss()(torch.zeros(5, V), torch.zeros(teacher_shape), labels)


def test_every_public_divergence_has_a_row() -> None:
    bases = (kd_losses.KDLoss, kd_losses.DistributionLoss)
    public = (getattr(kd_losses, name) for name in kd_losses.__all__)
    divergences = [
        c
        for c in public
        if isinstance(c, type) and issubclass(c, kd_losses.KDLoss) and c not in bases
    ]
    # Those between two vocabularies have other oracles: test_uld.py.
    names = {c.__name__ for c in divergences if c.shares_vocabulary}
    assert names == {case.name for case in CASES}
