"""Losses that need more than a distribution between kept and others, and what each may refuse."""

import pytest
import torch
from kd_loss_cases import CASES, Case
from kept_cases import (
    DISTRIBUTIONS,
    IGNORE,
    N,
    V,
    gradients,
    kept_of,
    logits_of,
    make_labels,
    make_student,
    make_teacher,
)
from torch import Tensor

from kd_losses import (
    BiLDLoss,
    CrossEntropy,
    Divergence,
    ForwardKLLoss,
    Head,
    KDLoss,
    KeptFavourites,
    Projected,
    Reads,
    RowTerm,
    Scoped,
    TopKKLLoss,
    TopOneAgreement,
    ULDLoss,
    chunked_sums,
)

ALL = torch.ones(N, dtype=torch.bool)


def run(teacher, *terms, chunk_size=5):
    student = make_student()
    scoped = [Scoped(term, ALL, 0.5) for term in terms]
    result = chunked_sums(student, teacher, make_labels(), scoped, chunk_size=chunk_size)
    return result.sums, gradients(result.total, student)


def same(ours, theirs):
    for pair in zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("k", [5, 9, V])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_top_k_kl_is_that_of_the_whole_teacher(k: int, temperature: float) -> None:
    teacher, term = make_teacher(), Divergence(TopKKLLoss(5, temperature))
    same(run(kept_of(logits_of(teacher), k), term), run(teacher, term))


@pytest.mark.parametrize(
    "make", [lambda: TopKKLLoss(), lambda: BiLDLoss(), lambda: BiLDLoss(V + 9)]
)
def test_all_ids_kept_is_the_whole_teacher(make) -> None:
    teacher, term = make_teacher(), Divergence(make())
    same(run(kept_of(logits_of(teacher), V), term), run(teacher, term))


@pytest.mark.parametrize("k", [8, 15])
def test_bild_takes_what_was_not_kept_to_be_spread_evenly(k: int) -> None:
    logits = logits_of(make_teacher())
    kept, term = kept_of(logits, k), Divergence(BiLDLoss(8, 2.0))
    p = logits.softmax(-1)
    inside = torch.zeros(N, V, dtype=torch.bool).scatter(-1, kept.ids, True)
    left = (p * ~inside).sum(-1, keepdim=True)
    filled = p.where(inside, left / (V - k)).log()
    as_rows = Projected(filled, Head(torch.eye(V, dtype=torch.float64)))
    same(run(kept, term), run(as_rows, term))

    favourites = logits_of(make_student()).topk(8, dim=-1).indices
    share = inside.gather(-1, favourites).double().mean(-1).sum().item()
    assert 0 < share < N
    (measured,), _ = run(kept, KeptFavourites(8))
    assert measured.item() == pytest.approx(share)
    (of_whole,), _ = run(make_teacher(), KeptFavourites(8))
    assert of_whole.item() == N


WHOLE = [case for case in CASES if case.name in ("DKDLoss", "NKDLoss", "NormKDLoss")]


class Brier(KDLoss):
    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        return (student_logits.softmax(-1) - teacher_logits.softmax(-1)).square().sum(-1)


class WeightedByConfidence(ForwardKLLoss):
    """Replaces what a token's loss is, so what its base reads says nothing."""

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        confidence = teacher_logits.softmax(-1).amax(-1)
        return confidence * super().per_token(student_logits, teacher_logits, labels)


class Margin(RowTerm):
    """A user's own term."""

    needs_teacher = True

    def per_token(self, student_logits, teacher_logits, labels):
        best = teacher_logits.topk(2, dim=-1).indices
        return self._margin(student_logits, best)

    def _margin(self, student_logits, best):
        first, second = student_logits.log_softmax(-1).gather(-1, best).unbind(-1)
        return first - second


class KeptMargin(Margin):
    reads = Reads(top_k=2)

    def per_token_top_k(self, student_logits, teacher, labels):
        return self._margin(student_logits, teacher.ids[:, :2])


@pytest.mark.parametrize(
    ("term", "message"),
    [
        *((Divergence(case.make()), f"{case.name} reads the teacher's whole") for case in WHOLE),
        (Divergence(ULDLoss()), "ULDLoss reads the teacher's whole .* only its 5 most probable"),
        (Divergence(Brier()), "Brier reads the teacher's whole .* such as ForwardKLLoss"),
        (Divergence(WeightedByConfidence()), "WeightedByConfidence reads the teacher's whole"),
        (Margin(), "Margin reads the teacher's whole"),
        (Divergence(TopKKLLoss(6)), "TopKKLLoss reads the teacher's 6 .* 5 were kept: keep 6, or"),
        (Divergence(BiLDLoss()), "BiLDLoss reads the teacher's 8 most probable ids"),
        (Divergence(ForwardKLLoss(temperature=3)), "temperature 3, .* kept at 1, 2: keep it at 3"),
    ],
    ids=str,
)  # fmt: skip
def test_a_term_that_reads_more_is_refused(term: RowTerm, message: str) -> None:
    teacher = kept_of(logits_of(make_teacher()), 5, 1.0, 2.0)
    with pytest.raises(ValueError, match=message):
        run(teacher, CrossEntropyBeside(), term)


class CrossEntropyBeside(RowTerm):
    """Reads no teacher, and is never refused."""

    def per_token(self, student_logits, teacher_logits, labels):
        assert teacher_logits is None
        return student_logits.logsumexp(-1)


def test_a_users_own_term_may_read_what_was_kept() -> None:
    teacher = make_teacher()
    kept = kept_of(logits_of(teacher), 5)
    terms = KeptMargin(), CrossEntropyBeside()
    same(run(kept, *terms), run(teacher, *terms))


class DoubledWhereKept(ForwardKLLoss):
    """Replaces what a token's loss is where only the top k were kept."""

    def per_token_top_k(self, student_logits, teacher, labels):
        return 2 * super().per_token_top_k(student_logits, teacher, labels)


def test_a_definition_of_its_own_is_what_the_gradient_is_of() -> None:
    kept = kept_of(logits_of(make_teacher()), 5)
    plain, doubled = (
        run(kept, Divergence(loss), CrossEntropyBeside())
        for loss in (ForwardKLLoss(), DoubledWhereKept())
    )
    assert doubled[0][0].item() == pytest.approx(2 * plain[0][0].item())
    student, labels = make_student(), make_labels()
    counted = labels != IGNORE
    grads = []
    for loss, weight in ((ForwardKLLoss(), 1.0), (DoubledWhereKept(), 0.5)):
        terms = [Scoped(CrossEntropy(), counted, 0.5), Scoped(Divergence(loss), counted, weight)]
        grads.append(gradients(chunked_sums(student, kept, labels, terms).total, student))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("case", DISTRIBUTIONS, ids=lambda case: case.id)
def test_what_a_loss_reads_is_known_before_anything_runs(case: Case) -> None:
    assert case.make(2.5).reads == Reads(temperature=2.5)
    missing = Divergence(case.make(2.5)).reads.missing
    assert missing(1, (1.0, 2.5), V) == ""
    assert "at temperature 2.5" in missing(64, (1.0,), V)


def test_what_the_others_read() -> None:
    assert CrossEntropy().reads.missing(1, (), V) == ""
    assert TopOneAgreement().reads.missing(1, (), V) == ""
    assert TopKKLLoss().reads == Reads(top_k=1024)
    assert TopKKLLoss().reads.missing(V, (), V) == ""
    assert BiLDLoss(4).reads.missing(4, (1.0,), V) == ""
    assert "kept at none" in BiLDLoss(4).reads.missing(4, (), V)
    assert Divergence(Brier()).reads.whole
    assert Margin().reads.whole


def test_the_ids_must_be_the_students() -> None:
    student = make_student()
    term = [Scoped(Divergence(ForwardKLLoss()), ALL, 1.0)]
    more = kept_of(torch.zeros(N, V + 2), 5)
    with pytest.raises(ValueError, match=f"out of {V + 2}, of which the student has {V}: keep"):
        chunked_sums(student, more, make_labels(), term)
    fewer = kept_of(logits_of(make_teacher())[:, : V - 2], 5)
    labels = make_labels().clamp(max=V - 3)
    cut = Projected(student.hidden, Head(student.head.weight[: V - 2]))
    ours, theirs = (chunked_sums(one, fewer, labels, term).sums[0] for one in (student, cut))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    assert (labels != IGNORE).any()
