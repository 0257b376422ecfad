"""Any number of terms in one pass, through heads with bias, scale and cap, against float64."""

import math

import pytest
import torch
from kd_loss_cases import Case, every_case
from torch.nn import functional as F

from kd_losses import (
    CrossEntropy,
    DistributionLoss,
    Divergence,
    ForwardKLLoss,
    Head,
    KDLoss,
    Projected,
    ReverseKLLoss,
    RowTerm,
    Scoped,
    TopOneAgreement,
    ULDLoss,
    chunked_sums,
)
from kd_losses.chunked.chunked_pass import ChunkedPass

N, V, DS, DT = 23, 37, 6, 8
IGNORE = -100
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.6},
    "softcap": {"softcap": 1.5},
    "all": {"bias": True, "scale": 1.7, "softcap": 2.0},
}
every_head = pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)


def make_side(width, options, seed, vocab=V, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()
        for shape in ((N, width), (vocab, width), (vocab,))
    )
    head = Head(weight, bias if options.get("bias") else None, *cap(options))
    return Projected(hidden, head)


def cap(options):
    return options.get("scale", 1.0), options.get("softcap")


def dense(rows):
    """The logits as the formula says, in float64."""
    weight, bias, scale, softcap = rows.head
    logits = rows.hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def make_labels():
    labels = torch.randint(V, (N,), generator=torch.Generator().manual_seed(3))
    labels[::4] = IGNORE
    return labels


def leaves(rows):
    return [t for t in (rows.hidden, rows.head.weight, rows.head.bias) if t is not None]


def same_gradients(student, total, expected):
    ours = torch.autograd.grad(total, leaves(student))
    theirs = torch.autograd.grad(expected, leaves(student))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@every_head
@every_case
def test_every_divergence_through_every_head(case: Case, options):
    student, teacher = make_side(DS, options, 1), make_side(DT, options, 2)
    labels, loss = make_labels(), case.make()
    kept = labels != IGNORE
    terms = [Scoped(CrossEntropy(), kept, 0.3), Scoped(Divergence(loss), kept, 0.7)]
    result = chunked_sums(student, teacher, labels, terms, chunk_size=5)
    ce = F.cross_entropy(dense(student)[kept], labels[kept], reduction="sum")
    kd = loss(dense(student), dense(teacher).detach(), labels, normalize=False)
    torch.testing.assert_close(torch.stack(result.sums), torch.stack([ce, kd]).detach())
    same_gradients(student, result.total, 0.3 * ce + 0.7 * kd)


@pytest.mark.parametrize("chunk_size", [1, 7, None])
@every_head
def test_terms_that_overlap_share_one_projection(monkeypatch, options, chunk_size):
    student, teacher = make_side(DS, options, 1), make_side(DT, options, 2)
    labels = make_labels()
    kept, everywhere = labels != IGNORE, torch.ones(N, dtype=torch.bool)
    some = torch.arange(N) % 3 == 0
    terms = [
        Scoped(CrossEntropy(), kept, 0.5),
        Scoped(Divergence(ForwardKLLoss()), everywhere, 0.25),
        Scoped(Divergence(ReverseKLLoss(temperature=2.0)), some, 1.5),
        Scoped(TopOneAgreement(), kept, 9.0),
    ]
    projected = []
    product = Projected.product_
    monkeypatch.setattr(
        Projected,
        "product_",
        lambda self, positions, buffer: (
            projected.append((self.hidden.shape[1], positions)) or product(self, positions, buffer)
        ),
    )
    result = chunked_sums(student, teacher, labels, terms, chunk_size=chunk_size)
    for width in (DS, DT):
        seen = torch.cat([positions for side, positions in projected if side == width])
        assert sorted(seen.tolist()) == list(range(N))
    z, y = dense(student), dense(teacher).detach()
    ce = F.cross_entropy(z[kept], labels[kept], reduction="sum")
    forward = F.kl_div(z.log_softmax(-1), y.log_softmax(-1), reduction="sum", log_target=True)
    reverse = F.kl_div(
        (y[some] / 2).log_softmax(-1), (z[some] / 2).log_softmax(-1), reduction="sum",
        log_target=True,
    )  # fmt: skip
    agree = (z.argmax(-1) == y.argmax(-1))[kept].sum().double()
    sums = torch.stack([ce, forward, reverse, agree]).detach()
    torch.testing.assert_close(torch.stack(result.sums), sums)
    same_gradients(student, result.total, 0.5 * ce + 0.25 * forward + 1.5 * reverse)


def test_disjoint_terms_give_the_bits_of_passes_of_their_own():
    sides = [make_side(w, {}, w, dtype=torch.float32) for w in (DS, DT)]
    labels = make_labels()
    kept = labels != IGNORE
    first = [Scoped(CrossEntropy(), kept, 0.5), Scoped(Divergence(ForwardKLLoss()), kept, 0.5)]
    second = [Scoped(Divergence(ReverseKLLoss()), ~kept, 0.2)]
    together = chunked_sums(*sides, labels, first + second, chunk_size=4)
    apart = [chunked_sums(*sides, labels, terms, chunk_size=4) for terms in (first, second)]
    assert together.sums == apart[0].sums + apart[1].sums
    (ours,) = torch.autograd.grad(together.total, sides[0].hidden)
    (theirs,) = torch.autograd.grad(apart[0].total + apart[1].total, sides[0].hidden)
    assert torch.equal(ours, theirs)


class Entropy(RowTerm):
    """A term of a user's: −Σ q·log q of the student."""

    def per_token(self, student_logits, teacher_logits, labels):
        log_q = student_logits.log_softmax(-1)
        return -(log_q.exp() * log_q).sum(-1)


def test_a_users_own_term_needs_a_formula_only():
    student = make_side(DS, HEADS["all"], 1)
    labels, mask = make_labels(), torch.arange(N) < 9
    result = chunked_sums(student, None, labels, [Scoped(Entropy(), mask, 2.0)], chunk_size=4)
    log_q = dense(student)[mask].log_softmax(-1)
    entropy = -(log_q.exp() * log_q).sum()
    assert result.sums[0].item() == pytest.approx(entropy.item(), rel=1e-12)
    same_gradients(student, result.total, 2 * entropy)


def test_a_padded_vocabulary_takes_part_of_the_bias():
    student = make_side(DS, {"bias": True}, 1, vocab=V + 5)
    teacher = make_side(DT, {"bias": True}, 2)
    labels = make_labels()
    kept = labels != IGNORE
    result = chunked_sums(student, teacher, labels, [Scoped(Divergence(ForwardKLLoss()), kept, 1)])
    loss = ForwardKLLoss()(dense(student), dense(teacher).detach(), labels, normalize=False)
    same_gradients(student, result.total, loss)


def test_vocabularies_with_nothing_in_common_keep_their_widths():
    student, teacher = make_side(DS, {}, 1, vocab=V + 2000), make_side(DT, {"bias": True}, 2)
    labels = make_labels()
    kept = labels != IGNORE
    result = chunked_sums(student, teacher, labels, [Scoped(Divergence(ULDLoss()), kept, 1.0)])
    expected = ULDLoss()(dense(student), dense(teacher).detach(), labels, normalize=False)
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-10)


def test_the_agreement_is_observed_only():
    student = make_side(DS, {}, 1)
    teacher = Projected(student.hidden + make_side(DS, {}, 2).hidden, student.head)
    labels = make_labels()
    everywhere = torch.ones(N, dtype=torch.bool)
    alone = chunked_sums(student, teacher, labels, [Scoped(TopOneAgreement(), everywhere, 1.0)])
    same = (dense(student).argmax(-1) == dense(teacher).argmax(-1)).sum().item()
    assert 0 < same < N
    assert alone.sums[0].item() == same
    assert alone.total.item() == 0
    (grad,) = torch.autograd.grad(alone.total, student.hidden)
    assert not grad.any()


def test_half_precision_is_as_exact_as_its_products():
    exact = [make_side(w, HEADS["all"], w) for w in (DS, DT)]
    half = [
        Projected(
            rows.hidden.detach().bfloat16(),
            rows.head._replace(
                weight=rows.head.weight.detach().bfloat16(), bias=rows.head.bias.detach().float()
            ),
        )
        for rows in exact
    ]
    labels = make_labels()
    terms = [Scoped(Divergence(ForwardKLLoss()), labels != IGNORE, 1.0)]
    value = chunked_sums(*half, labels, terms).sums[0].item()
    assert math.isclose(value, chunked_sums(*exact, labels, terms).sums[0].item(), rel_tol=0.03)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([Scoped(TopOneAgreement(), torch.ones(N, dtype=torch.bool), 1.0)], "needs the teacher"),
        ([Scoped(CrossEntropy(), torch.ones(N), 1.0)], "mask of CrossEntropy must be bool"),
        ([Scoped(CrossEntropy(), torch.ones(N, dtype=torch.bool), 1.0)] * 2, "one cross-entropy"),
    ],
)
def test_terms_that_do_not_fit_are_refused(terms, message):
    with pytest.raises(ValueError, match=message):
        chunked_sums(make_side(DS, {}, 1), None, make_labels(), terms)


def test_a_head_whose_bias_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"head.bias must be \[37\], got \[36\]"):
        Projected(torch.zeros(N, DS), Head(torch.zeros(V, DS), torch.zeros(V - 1)))


class LogitSum(RowTerm):
    """Its gradient is 1 everywhere, which autograd keeps as a single number."""

    def per_token(self, student_logits, teacher_logits, labels):
        return student_logits.sum(-1)


class LogProbSum(DistributionLoss):
    def divergence(self, log_p, log_q):
        return log_q.sum(-1)


class LogitDifference(KDLoss):
    def per_token(self, student_logits, teacher_logits, labels):
        return (student_logits - teacher_logits).sum(-1)


@every_head
@pytest.mark.parametrize(
    "make",
    [LogitSum, lambda: Divergence(LogProbSum()), lambda: Divergence(LogitDifference())],
    ids=["term", "distribution", "divergence"],
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_gradient_that_is_one_number(options, make, times):
    student, teacher = make_side(DS, options, 1), make_side(DT, options, 2)
    labels = make_labels()
    kept = labels != IGNORE
    term = make()
    terms = [Scoped(CrossEntropy(), kept, 0.5), *[Scoped(term, kept, 0.25)] * times]
    result = chunked_sums(student, teacher, labels, terms, chunk_size=5)
    logits, theirs = dense(student)[kept], dense(teacher)[kept].detach()
    ce = torch.nn.functional.cross_entropy(logits, labels[kept], reduction="sum")
    total = 0.5 * ce + times * 0.25 * term.per_token(logits, theirs, labels[kept]).sum()
    assert result.total.item() == pytest.approx(total.item(), rel=1e-10)
    same_gradients(student, result.total, total)


def test_cross_entropy_without_a_label_is_refused():
    everywhere = torch.ones(N, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 37\).* got -100"):
        chunked_sums(
            make_side(DS, {}, 1), None, make_labels(), [Scoped(CrossEntropy(), everywhere, 1.0)]
        )


def test_what_is_only_observed_costs_no_backward(monkeypatch):
    carried = []
    add = ChunkedPass._add_gradients
    monkeypatch.setattr(
        ChunkedPass,
        "_add_gradients",
        lambda self, result, grad, positions: (
            carried.append(positions) or add(self, result, grad, positions)
        ),
    )
    student, teacher = make_side(DS, {}, 1), make_side(DT, {}, 2)
    labels = make_labels()
    kept = labels != IGNORE
    terms = [Scoped(CrossEntropy(), kept, 1.0), Scoped(TopOneAgreement(), ~kept, 1.0)]
    chunked_sums(student, teacher, labels, terms, chunk_size=4)
    assert torch.cat(carried).tolist() == kept.nonzero().squeeze(-1).tolist()
    alone = chunked_sums(student, teacher, labels, terms[1:])
    assert alone.total.dtype == torch.float64
