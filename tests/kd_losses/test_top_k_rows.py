"""Losses of a teacher's top k in the chunked pass, against categories made by hand in float64."""

import pytest
import torch
from kd_loss_cases import Case
from kept_cases import (
    IGNORE,
    N,
    V,
    every_distribution,
    gradients,
    kept_of,
    logits_of,
    make_labels,
    make_student,
    make_teacher,
    merged,
    randn,
)
from test_linear_kd import SizeRecorder
from test_memory_reuse import WritesWhatItReads
from torch import Tensor
from torch.nn import functional as F

from kd_losses import (
    CrossEntropy,
    DistributionLoss,
    Divergence,
    ForwardKLLoss,
    ReverseKLLoss,
    Scoped,
    TopK,
    TopOneAgreement,
    chunked_sums,
)

every_k = pytest.mark.parametrize("k", [1, 5, V - 1, V])
every_temperature = pytest.mark.parametrize("temperature", [1.0, 2.0])


def same(ours, theirs, rtol=1e-8, atol=1e-11):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=rtol, atol=atol)


@every_distribution
@every_temperature
@every_k
def test_every_divergence_with_cross_entropy(case: Case, temperature: float, k: int) -> None:
    student, labels, loss = make_student(), make_labels(), case.make(temperature)
    teacher = kept_of(logits_of(make_teacher()), k, 1.0, 2.0)
    counted = labels != IGNORE
    terms = [Scoped(CrossEntropy(), counted, 0.3), Scoped(Divergence(loss), counted, 0.7)]
    result = chunked_sums(student, teacher, labels, terms, chunk_size=5)

    logits, ids = logits_of(student)[counted], teacher.ids[counted]
    log_p = merged(logits_of(make_teacher())[counted], ids, temperature)
    log_q = merged(logits, ids, temperature)
    if log_p.shape[1] > 1:
        rows = zip(log_p.numpy(), log_q.detach().numpy(), strict=True)
        kd = sum(case.oracle(p, q, None, 1.0) for p, q in rows)
        assert result.sums[1].item() == pytest.approx(kd, rel=1e-9)
    ce = F.cross_entropy(logits, labels[counted], reduction="sum")
    kd = loss.divergence(log_p, log_q).sum()
    same(result.sums, (ce, kd))
    same(gradients(result.total, student), gradients(0.3 * ce + 0.7 * kd, student))
    with torch.no_grad():
        same(chunked_sums(student, teacher, labels, terms).sums, result.sums, rtol=1e-11)


class ClosedForm(torch.autograd.Function):
    """A loss whose gradient is the one that it gives itself."""

    @staticmethod
    def forward(ctx, logits, loss, teacher):
        labels = torch.zeros(len(logits), dtype=torch.long)
        value, grad = loss.per_token_top_k_and_grad(logits.detach().clone(), teacher, labels, 1.0)
        ctx.save_for_backward(grad)
        return value.sum()

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * ctx.saved_tensors[0], None, None


@every_distribution
@every_temperature
@pytest.mark.parametrize("k", [1, 4])
def test_gradient_matches_finite_differences(case: Case, temperature: float, k: int) -> None:
    teacher = kept_of(randn(4, 11, seed=2, scale=2), k, 1.0, 2.0)
    loss = case.make(temperature)
    student = randn(4, 11, seed=1, scale=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ClosedForm.apply(x, loss, teacher), student)
    assert torch.autograd.gradcheck(lambda x: loss.per_token_top_k(x, teacher, None), student)


@pytest.mark.parametrize("chunk_size", [1, 7, None])
def test_terms_that_overlap_with_masks_of_their_own(chunk_size: int | None) -> None:
    student, labels, logits = make_student(), make_labels(), logits_of(make_teacher())
    teacher = kept_of(logits, 6, 1.0, 2.0)
    counted, everywhere, some = labels != IGNORE, labels == labels, torch.arange(N) % 3 == 0
    terms = [
        Scoped(CrossEntropy(), counted, 0.5),
        Scoped(Divergence(ForwardKLLoss()), everywhere, 0.25),
        Scoped(Divergence(ReverseKLLoss(temperature=2.0)), some, 1.5),
        Scoped(TopOneAgreement(), counted, 9.0),
    ]
    result = chunked_sums(student, teacher, labels, terms, chunk_size=chunk_size)
    z, ids = logits_of(student), teacher.ids
    p, q = merged(logits, ids), merged(z, ids)
    p2, q2 = (merged(one, ids, 2.0)[some] for one in (logits, z))
    ce = F.cross_entropy(z[counted], labels[counted], reduction="sum")
    forward = F.kl_div(q, p, reduction="sum", log_target=True)
    reverse = F.kl_div(p2, q2, reduction="sum", log_target=True)
    agree = (z.argmax(-1) == logits.argmax(-1))[counted].sum().double()
    assert 0 < agree < counted.sum()
    same(result.sums, (ce, forward, reverse, agree))
    same(gradients(result.total, student),
         gradients(0.5 * ce + 0.25 * forward + 1.5 * reverse, student))  # fmt: skip


@every_distribution
def test_fp32_is_exact_to_its_digits(case: Case) -> None:
    student, exact, labels = make_student(torch.float32), make_student(), make_labels()
    teacher = keep = kept_of(logits_of(make_teacher()), 5)
    single = TopK(keep.ids.int(), keep.log_probs.float(), keep.rest.float(), V)
    counted = labels != IGNORE
    terms = [Scoped(CrossEntropy(), counted, 1.0), Scoped(Divergence(case.make()), counted, 1.0)]
    ours = chunked_sums(student, single, labels, terms)
    theirs = chunked_sums(exact, teacher, labels, terms)
    assert ours.total.dtype == torch.float32
    same((one.double() for one in ours.sums), theirs.sums, rtol=1e-5, atol=1e-5)
    grads = (one.double() for one in gradients(ours.total, student))
    same(grads, gradients(theirs.total, exact), rtol=1e-4, atol=1e-5)


class Bhattacharyya(DistributionLoss):
    """A user's own: nothing but a formula."""

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return -((log_p + log_q) / 2).logsumexp(-1)


def test_a_users_own_divergence_needs_no_more_than_its_formula() -> None:
    student, labels, teacher = make_student(), make_labels(), kept_of(logits_of(make_teacher()), 5)
    everywhere = labels == labels
    terms = [Scoped(Divergence(Bhattacharyya()), everywhere, 2.0)]
    result = chunked_sums(student, teacher, labels, terms, chunk_size=4)
    p, q = (merged(logits_of(one), teacher.ids).exp() for one in (make_teacher(), student))
    expected = -(p * q).sqrt().sum(-1).log().sum()
    same(result.sums, [expected])
    same(gradients(result.total, student), gradients(2 * expected, student))


@every_temperature
@pytest.mark.parametrize("ce_weight", [0.0, 0.5])
@every_distribution
def test_the_teacher_has_no_row_of_the_vocabulary(case: Case, temperature: float, ce_weight: float):
    student, labels, teacher = (
        make_student(),
        make_labels(),
        kept_of(logits_of(make_teacher()), 5, 1.0, 2.0),
    )
    counted = labels != IGNORE
    terms = [Scoped(Divergence(case.make(temperature)), counted, 1.0)]
    terms += [Scoped(CrossEntropy(), counted, ce_weight)] if ce_weight else []
    assert teacher.new_buffer(100).numel() == 0
    with SizeRecorder() as side:
        chunk = teacher.chunk_(torch.arange(7), teacher.new_buffer(7))
        chunk.tile(slice(0, 3), torch.float64).log_p(temperature)
    assert side.shapes
    assert not any(V in shape for shape in side.shapes)
    with SizeRecorder() as recorder, WritesWhatItReads() as mode:
        chunked_sums(student, teacher, labels, terms, chunk_size=4).total.backward()
    assert mode.found == []
    assert max(shape.numel() for shape in recorder.shapes if V in shape) <= V * 8
