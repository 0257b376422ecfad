"""The chunked pass against the same losses on logits that exist as a whole."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kd_loss_cases import Case, every_case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kd_losses import ForwardKLLoss, KDLoss, LinearKDLoss, LinearKDOutput, ReverseKLLoss
from kd_losses.chunked.rows import Projected

V = 29


class Batch(NamedTuple):
    """Hidden states, heads and labels in the order of `LinearKDLoss.forward`."""

    student_hidden: Tensor
    student_head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    labels: Tensor


def make_batch(
    num: int = 13,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    student_vocab: int = V,
    teacher_vocab: int = V,
    unlabelled: float = 0.3,
) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.randint(V, (num,), generator=generator)
    labels[torch.rand(num, generator=generator) < unlabelled] = -100
    student = randn(num, 6), randn(student_vocab, 6)
    teacher = randn(num, 8), randn(teacher_vocab, 8)
    for tensor in student:
        tensor.requires_grad_()
    return Batch(*student, *teacher, labels)


def on_whole_logits(
    loss: KDLoss, ce_weight: float, kd_weight: float, batch: Batch, kd_mask: Tensor | None = None
) -> LinearKDOutput:
    """The same sums, from logits of all positions and torch's own cross-entropy."""
    student = batch.student_hidden @ batch.student_head.T
    teacher = batch.teacher_hidden @ batch.teacher_head.T
    vocab_size = min(student.shape[1], teacher.shape[1])
    student, teacher = student[:, :vocab_size], teacher[:, :vocab_size]
    ce = F.cross_entropy(student, batch.labels, ignore_index=-100, reduction="sum")
    mask = batch.labels != -100 if kd_mask is None else kd_mask
    kd = loss.per_token(student[mask], teacher[mask], batch.labels[mask]).sum()
    return LinearKDOutput(ce_weight * ce + kd_weight * kd, ce, kd, (batch.labels != -100).sum())


def gradients(output: LinearKDOutput, batch: Batch) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output.total, (batch.student_hidden, batch.student_head))


def assert_same(
    output: LinearKDOutput, expected: LinearKDOutput, batch: Batch, **tolerance: float
) -> None:
    tolerance = tolerance or {"rtol": 1e-9, "atol": 1e-11}
    for value, wanted in zip(output, expected, strict=True):
        torch.testing.assert_close(value.detach(), wanted.detach(), **tolerance)
    for grad, wanted in zip(gradients(output, batch), gradients(expected, batch), strict=True):
        torch.testing.assert_close(grad, wanted, **tolerance)


@every_case
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("chunk_size", [1, 4, 100, None])
def test_every_divergence_with_cross_entropy(
    case: Case, temperature: float, chunk_size: int | None
) -> None:
    batch, loss = make_batch(), case.make(temperature)
    output = LinearKDLoss(loss, 0.4, 0.7, chunk_size)(*batch)
    assert_same(output, on_whole_logits(loss, 0.4, 0.7, batch), batch)


@settings(max_examples=60)
@given(
    num=st.integers(1, 40),
    chunk_size=st.integers(1, 50),
    unlabelled=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 100),
    own_mask=st.booleans(),
    weights=st.sampled_from([(1.0, 1.0), (0.2, 3.0), (0.5, 0.0), (0.0, 0.5)]),
)
def test_any_length_chunk_mask_and_weight(
    num: int,
    chunk_size: int,
    unlabelled: float,
    seed: int,
    own_mask: bool,
    weights: tuple[float, float],
) -> None:
    batch = make_batch(num, seed=seed, unlabelled=unlabelled)
    kd_mask = batch.student_hidden[:, 0] > 0 if own_mask else None
    linear = LinearKDLoss(ReverseKLLoss(), *weights, chunk_size)
    expected = on_whole_logits(linear.kd_loss, *weights, batch, kd_mask)
    assert_same(linear(*batch, kd_mask, report_all=True), expected, batch)
    skipping = linear(*batch, kd_mask)
    torch.testing.assert_close(skipping.total, expected.total)
    for part, weight in (("ce", weights[0]), ("kd", weights[1])):
        wanted = getattr(expected, part) if weight else torch.zeros_like(expected.total)
        torch.testing.assert_close(getattr(skipping, part), wanted.detach())


def test_micro_batches_add_up_to_one_batch() -> None:
    batch = make_batch(12)
    linear = LinearKDLoss(ForwardKLLoss(), 0.5, 0.5)
    whole = gradients(linear(*batch), batch)
    summed = [torch.zeros_like(grad) for grad in whole]
    for rows in (slice(0, 1), slice(1, 8), slice(8, 12)):
        part = Batch(
            batch.student_hidden[rows],
            batch.student_head,
            batch.teacher_hidden[rows],
            batch.teacher_head,
            batch.labels[rows],
        )
        for total, grad in zip(summed, gradients(linear(*part), batch), strict=True):
            total += grad
    torch.testing.assert_close(summed, list(whole), rtol=1e-12, atol=1e-13)


def test_weights_may_change_between_calls() -> None:
    batch = make_batch()
    linear = LinearKDLoss(ForwardKLLoss(), 1.0, 1.0)
    linear(*batch)
    linear.ce_weight, linear.kd_weight = 0.1, 0.25
    assert_same(linear(*batch), on_whole_logits(linear.kd_loss, 0.1, 0.25, batch), batch)


def test_gradient_is_scaled_by_what_follows() -> None:
    batch = make_batch()
    linear = LinearKDLoss(ForwardKLLoss(), 1.0, 1.0)
    once = gradients(linear(*batch), batch)
    output = linear(*batch)
    thrice = torch.autograd.grad(3 * output.total, (batch.student_hidden, batch.student_head))
    torch.testing.assert_close(thrice, tuple(3 * grad for grad in once))
    assert not output.ce.requires_grad
    assert not output.kd.requires_grad


def test_tied_head_gets_both_of_its_gradients() -> None:
    batch = make_batch()
    embedding = batch.student_head.detach().clone().requires_grad_()
    tokens = torch.arange(len(batch.labels)) % V

    def grad(run: Callable[[Batch], LinearKDOutput]) -> Tensor:
        tied = batch._replace(student_hidden=embedding[tokens] * 2, student_head=embedding)
        return torch.autograd.grad(run(tied).total, embedding)[0]

    linear = LinearKDLoss(ForwardKLLoss(), 0.5, 0.5, chunk_size=4)
    expected = grad(lambda tied: on_whole_logits(linear.kd_loss, 0.5, 0.5, tied))
    torch.testing.assert_close(grad(lambda tied: linear(*tied)), expected)


@pytest.mark.parametrize(("student_vocab", "teacher_vocab"), [(V + 7, V), (V, V + 7)])
def test_padded_head_is_cut_to_the_shared_ids(student_vocab: int, teacher_vocab: int) -> None:
    batch = make_batch(student_vocab=student_vocab, teacher_vocab=teacher_vocab)
    linear = LinearKDLoss(ForwardKLLoss(), 0.5, 0.5, chunk_size=4)
    assert_same(linear(*batch), on_whole_logits(linear.kd_loss, 0.5, 0.5, batch), batch)


def test_positions_without_a_loss_are_never_projected() -> None:
    batch = make_batch()
    poisoned = batch.labels == -100
    expected = gradients(LinearKDLoss(ForwardKLLoss(), 0.5, 0.5)(*batch), batch)
    with torch.no_grad():
        batch.student_hidden[poisoned] = torch.nan
        batch.teacher_hidden[poisoned] = torch.nan
    output = LinearKDLoss(ForwardKLLoss(), 0.5, 0.5)(*batch)
    grads = gradients(output, batch)
    torch.testing.assert_close(grads, expected)
    assert not grads[0][poisoned].any()


def test_nothing_labelled_is_zero_with_zero_gradient() -> None:
    batch = make_batch(unlabelled=1.1)
    output = LinearKDLoss(ForwardKLLoss(), 0.5, 0.5)(*batch)
    assert [value.item() for value in output] == [0, 0, 0, 0]
    assert not any(grad.any() for grad in gradients(output, batch))


def test_cross_entropy_alone_needs_no_teacher() -> None:
    batch = make_batch()
    output = LinearKDLoss(ForwardKLLoss(), 0.5, 0.0)(
        batch.student_hidden, batch.student_head, None, None, batch.labels
    )
    assert_same(
        output, on_whole_logits(ForwardKLLoss(), 0.5, 0.0, batch)._replace(kd=output.kd), batch
    )
    assert output.kd == 0


class SizeRecorder(TorchDispatchMode):
    """Notes the shape of every tensor that an operation allocates or fills."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            outputs = result if isinstance(result, tuple | list) else (result,)
            self.shapes += [out.shape for out in outputs if isinstance(out, Tensor)]
        return result


@every_case
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_no_tensor_grows_with_tokens_times_vocabulary(case: Case, temperature: float) -> None:
    batch = make_batch(64, unlabelled=0.0)
    with SizeRecorder() as recorder:
        LinearKDLoss(case.make(temperature), 0.5, 0.5, chunk_size=4)(*batch).total.backward()
    assert recorder.shapes
    # Four rows of logits; the difference pairs of BiLD's eight ids are fewer than V = 29.
    assert max(shape.numel() for shape in recorder.shapes if V in shape) <= V * 8


def test_frozen_head_gets_no_gradient_and_costs_no_buffer() -> None:
    batch = make_batch()
    batch.student_head.requires_grad_(False)
    with SizeRecorder() as recorder:
        LinearKDLoss(ForwardKLLoss(), 0.5, 0.5)(*batch).total.backward()
    assert batch.student_head.grad is None
    assert batch.student_head.shape not in recorder.shapes


class ValueOnly(ForwardKLLoss):
    def per_token_and_grad(self, *args: Any) -> tuple[Tensor, Tensor]:
        raise AssertionError("a gradient was taken")

    divergence_and_slope = per_token_and_grad


def test_without_autograd_only_values_are_taken() -> None:
    batch = make_batch()
    linear = LinearKDLoss(ValueOnly(), 0.5, 0.5, chunk_size=4)
    with torch.no_grad():
        output = linear(*batch)
    expected = on_whole_logits(ForwardKLLoss(), 0.5, 0.5, batch)
    torch.testing.assert_close(tuple(output), tuple(value.detach() for value in expected))
    frozen = Batch(*(tensor.detach() for tensor in batch))
    assert not linear(*frozen).total.requires_grad


def test_bf16_operands_with_fp32_arithmetic() -> None:
    batch = make_batch(64, dtype=torch.bfloat16)
    linear = LinearKDLoss(ForwardKLLoss(), 0.01, 0.02, chunk_size=16)
    exact = Batch(*(t.detach().double().requires_grad_() for t in batch[:2]), *batch[2:])
    exact = exact._replace(
        teacher_hidden=batch.teacher_hidden.double(), teacher_head=batch.teacher_head.double()
    )
    output, expected = linear(*batch), on_whole_logits(linear.kd_loss, 0.01, 0.02, exact)
    assert output.ce.dtype == output.kd.dtype == torch.float32
    torch.testing.assert_close(output.total.double(), expected.total, rtol=5e-3, atol=0)
    for grad, wanted in zip(gradients(output, batch), gradients(expected, exact), strict=True):
        assert grad.dtype == torch.bfloat16
        assert (grad.double() - wanted).norm() < 0.01 * wanted.norm()


def test_bf16_head_gradient_is_summed_in_fp32() -> None:
    """A thousand small contributions to a large one: bf16 partial sums would drop them all."""
    num = 1001
    hidden = torch.full((num, 1), 1 / 512, dtype=torch.bfloat16)
    hidden[0] = 1.0
    head = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(num, dtype=torch.long)
    linear = LinearKDLoss(ForwardKLLoss(), 1.0, 0.0, chunk_size=1)
    linear(hidden, head, None, None, labels).total.backward()
    assert head.grad is not None
    expected = (1 + 1000 / 512) / 2
    torch.testing.assert_close(head.grad[1].item(), expected, rtol=1e-2, atol=0)


def test_an_fp32_head_is_multiplied_in_the_hidden_states_bf16() -> None:
    """Its gradient is the plain sum over chunks, (1 + 999 / 512) / 2, of which bf16 drops a bit."""
    num = 1000
    hidden = torch.full((num, 1), 1 / 512, dtype=torch.bfloat16)
    hidden[0] = 1.0
    head = torch.zeros(2, 1, requires_grad=True)
    labels = torch.zeros(num, dtype=torch.long)
    linear = LinearKDLoss(ForwardKLLoss(), 1.0, 0.0, chunk_size=1)
    linear(hidden, head, None, None, labels).total.backward()
    assert head.grad is not None
    assert head.grad.dtype == torch.float32
    assert head.grad[1].item() == (1 + 999 / 512) / 2 != head.grad[1].bfloat16().item()

    batch = make_batch(dtype=torch.bfloat16)
    kept = batch.student_head.detach().float() * (1 + 2**-12)  # what bf16 rounds off
    wide = batch._replace(student_head=kept.requires_grad_())
    linear = LinearKDLoss(ForwardKLLoss(), 0.1, 0.1, chunk_size=4)
    assert torch.equal(linear(*wide).total, linear(*batch).total)
    for grad, rounded in zip(
        gradients(linear(*wide), wide), gradients(linear(*batch), batch), strict=True
    ):
        assert torch.equal(grad.bfloat16(), rounded)


def emulate_widening_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this device's matrix product return fp32 for bf16 operands, as CUDA's does."""
    mm = torch.mm

    def widening(a: Tensor, b: Tensor, *, out: Tensor, out_dtype: torch.dtype) -> Tensor:
        return mm(a.to(out_dtype), b.to(out_dtype), out=out)

    monkeypatch.setattr(torch, "mm", widening)
    monkeypatch.setattr(Projected, "_widens", lambda self: True)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
        "emulated",
    ],
)
def test_bf16_logits_are_not_rounded_where_products_can_return_fp32(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models apart by less than what rounding their logits to bf16 would add."""
    if device == "emulated":
        emulate_widening_products(monkeypatch)
        device = "cpu"
    batch = make_batch(64, dtype=torch.bfloat16, unlabelled=0.0)
    teacher_hidden = torch.nn.functional.pad(batch.student_hidden.detach(), (0, 2), value=2**-6)
    teacher_head = torch.cat([batch.student_head.detach(), batch.teacher_head[:, :2]], dim=1)
    batch = batch._replace(teacher_hidden=teacher_hidden, teacher_head=teacher_head)
    batch = Batch(*(t.detach().to(device) for t in batch))
    batch.student_hidden.requires_grad_()
    batch.student_head.requires_grad_()
    exact = Batch(*(t.detach().double() for t in batch[:4]), batch.labels)
    exact.student_hidden.requires_grad_()
    exact.student_head.requires_grad_()
    linear = LinearKDLoss(ForwardKLLoss(), 0.0, 0.02, chunk_size=16)
    output, expected = linear(*batch), on_whole_logits(linear.kd_loss, 0.0, 0.02, exact)
    torch.testing.assert_close(output.kd.double(), expected.kd, rtol=5e-3, atol=0)
    for grad, wanted in zip(gradients(output, batch), gradients(expected, exact), strict=True):
        assert (grad.double() - wanted).norm() < 0.01 * wanted.norm()


def test_autocast_projects_in_its_type_and_keeps_the_parameters() -> None:
    batch = make_batch(dtype=torch.float32)
    linear = LinearKDLoss(ForwardKLLoss(), 0.1, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = linear(*batch)
    low = Batch(*(t.detach().bfloat16() for t in batch[:4]), batch.labels)
    torch.testing.assert_close(output.total.detach(), linear(*low).total)
    assert all(grad.dtype == torch.float32 for grad in gradients(output, batch))


class Brier(KDLoss):
    """A divergence that a user might add: no closed form, nothing but a value for every token."""

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        return (student_logits.softmax(-1) - teacher_logits.softmax(-1)).square().sum(-1)


class Doubled(ForwardKLLoss):
    """Replaces the value but not the closed-form gradient that came with it."""

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return 2 * super().divergence(log_p, log_q)


class WeightedByConfidence(ForwardKLLoss):
    """Replaces the loss of a token as a whole."""

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        confidence = teacher_logits.softmax(-1).amax(-1)
        return confidence * super().per_token(student_logits, teacher_logits, labels)


@pytest.mark.parametrize("make", [Brier, Doubled, WeightedByConfidence])
def test_a_users_own_divergence_works(make: type[KDLoss]) -> None:
    batch, loss = make_batch(), make()
    output = LinearKDLoss(loss, 0.4, 0.7, chunk_size=4)(*batch)
    assert_same(output, on_whole_logits(loss, 0.4, 0.7, batch), batch)


def test_backward_runs_once() -> None:
    output = LinearKDLoss(ForwardKLLoss(), 0.5, 0.5)(*make_batch())
    output.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="runs backward once"):
        output.total.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.full((13,), V)}, rf"labels must lie in \[0, {V}\).*got {V} to {V}"),
        ({"labels": torch.full((13,), -1)}, "got -1 to -1"),
        ({"teacher_hidden": None}, "needs teacher_hidden and teacher_head"),
        ({"teacher_head": torch.zeros(5000, 8)}, f"student vocabulary {V} .* 5000"),
        ({"teacher_hidden": torch.zeros(12, 8)}, r"teacher_hidden must be .*\[12, 8\]"),
        ({"kd_mask": torch.ones(13)}, "kd_mask must be bool"),
        ({"kd_mask": torch.ones(12, dtype=torch.bool)}, r"kd_mask must be .*\[13\].*\[12\]"),
        ({"student_hidden": torch.zeros(13, 5)}, r"student_hidden must be .*\[13, 5\]"),
        ({"student_hidden": torch.zeros(1, 13, 6)}, r"student_hidden must be .*\[1, 13, 6\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearKDLoss(ForwardKLLoss(), 0.5, 0.5)(**make_batch()._asdict() | change)


def test_bad_construction_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size must be null or above 0, got 0"):
        LinearKDLoss(ForwardKLLoss(), 1.0, 1.0, chunk_size=0)
    with pytest.raises(ValueError, match="kd_loss must be a KDLoss, got CrossEntropyLoss"):
        LinearKDLoss(torch.nn.CrossEntropyLoss(), 1.0, 1.0)
