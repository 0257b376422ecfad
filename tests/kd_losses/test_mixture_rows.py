"""Several teachers averaged, against float64 arithmetic on whole rows."""

import pytest
import torch
from kept_cases import DT, N, V, gradients, kept_of, logits_of, make_labels, make_student, randn
from test_linear_kd import SizeRecorder
from torch.nn import functional as F

from kd_losses import (
    CrossEntropy,
    Divergence,
    DKDLoss,
    ForwardKLLoss,
    Head,
    Mixture,
    Projected,
    ReverseKLLoss,
    Scoped,
    TopOneAgreement,
    chunked_sums,
    keep_top_k,
)

SPACES = "probabilities", "logits"
WEIGHTS = {
    "one for all": torch.tensor([1.0, 3.0, 2.0]),
    "of each row": randn(N, 3, seed=9).square(),
    "routed": F.one_hot(torch.arange(N) % 3, 3),
}
ALL = torch.ones(N, dtype=torch.bool)
every_space = pytest.mark.parametrize("space", SPACES)
every_weight = pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)


def make_members(vocabs=(V, V, V), dtype=torch.float64):
    return [
        Projected(randn(N, DT + i, seed=i).to(dtype), Head(randn(v, DT + i, seed=10 + i).to(dtype)))
        for i, v in enumerate(vocabs)
    ]


def averaged(members, weights, space):
    """[N, V] by the definition."""
    logits = torch.stack([logits_of(one)[:, :V] for one in members], dim=1)
    weights = weights.double().expand(N, len(members))
    share = (weights / weights.sum(-1, keepdim=True)).unsqueeze(-1)
    if space == "logits":
        return (share * logits).sum(1)
    return (share * logits.softmax(-1)).sum(1).log()


def run(teacher, *losses, chunk_size=5, student=None):
    student = student or make_student()
    terms = [Scoped(CrossEntropy(), make_labels() >= 0, 0.3)]
    terms += [Scoped(Divergence(loss), ALL, 0.5) for loss in losses]
    terms += [Scoped(TopOneAgreement(), ALL, 1.0)]
    result = chunked_sums(student, teacher, make_labels(), terms, chunk_size=chunk_size)
    return torch.stack([result.total, *result.sums]), *gradients(result.total, student)


def of_logits(logits):
    """The same logits as plain rows."""
    return Projected(logits, Head(torch.eye(V, dtype=logits.dtype)))


@every_space
@every_weight
@pytest.mark.parametrize("chunk_size", [1, 7, None])
def test_the_average_teaches_like_its_rows(space, weights, chunk_size):
    members = make_members()
    losses = ForwardKLLoss(), ReverseKLLoss(temperature=2.0), DKDLoss()
    ours = run(Mixture(members, weights, space), *losses, chunk_size=chunk_size)
    theirs = run(of_logits(averaged(members, weights, space)), *losses)
    for pair in zip(ours, theirs, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-11)


@every_space
@every_weight
def test_rows_are_the_definitions(space, weights):
    members = make_members()
    mixture = Mixture(members, weights, space).ready()
    positions = torch.tensor([4, 0, 17])
    rows = mixture.product_(positions, mixture.new_buffer(5))
    expected = averaged(members, weights, space)[positions]
    assert rows.dtype == torch.float64
    torch.testing.assert_close(rows, expected, rtol=1e-11, atol=1e-12)


@every_space
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_narrow_members_are_averaged_in_fp32(space, dtype, tolerance):
    members, weights = make_members(dtype=dtype), WEIGHTS["of each row"]
    mixture = Mixture(members, weights, space).ready()
    rows = mixture.product_(torch.arange(N), mixture.new_buffer(N))
    assert rows.dtype == torch.float32
    expected = averaged(members, weights, space)
    torch.testing.assert_close(rows.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_probability_too_small_for_fp32_keeps_its_logarithm():
    logits = torch.tensor([[0.0, -200.0], [0.0, -300.0]])
    members = [Projected(one[None], Head(torch.eye(2))) for one in logits]
    mixture = Mixture(members, torch.tensor([0.5, 0.5])).ready()
    rows = mixture.product_(torch.tensor([0]), mixture.new_buffer(1))
    expected = torch.tensor([[0.0, -200.0 + torch.tensor(0.5).log()]])
    torch.testing.assert_close(rows, expected)


@every_space
def test_a_member_of_weight_zero_does_not_see_the_row(space, monkeypatch):
    members, weights = make_members(), WEIGHTS["routed"]
    expected = run(Mixture(members, weights, space), ForwardKLLoss())
    for number, one in enumerate(members):
        one.hidden[weights[:, number] == 0] = torch.nan
    assert torch.equal(run(Mixture(members, weights, space), ForwardKLLoss())[1], expected[1])
    projected = []
    product = Projected.product_
    monkeypatch.setattr(
        Projected,
        "product_",
        lambda self, positions, buffer: (
            projected.append(len(positions)) or product(self, positions, buffer)
        ),
    )
    run(Mixture(members, weights, space), ForwardKLLoss())
    assert sum(projected) == 2 * N  # the student, and one teacher for each token


@every_space
def test_heads_padded_to_different_widths(space):
    members = make_members((V + 5, V, V + 2))
    mixture = Mixture(members, WEIGHTS["one for all"], space)
    assert mixture.vocab_size == V
    ours = run(mixture, ForwardKLLoss())
    plain = [Projected(one.hidden, Head(one.head.weight[:V])) for one in members]
    assert torch.equal(ours[0], run(Mixture(plain, mixture.weights, space), ForwardKLLoss())[0])
    narrow = Projected(make_student().hidden, Head(make_student().head.weight[: V - 3]))
    terms = [Scoped(Divergence(ForwardKLLoss()), ALL, 1.0)]
    none = torch.full((N,), -100)
    cut = chunked_sums(narrow, mixture, none, terms).sums[0]
    own = [Projected(one.hidden, Head(one.head.weight[: V - 3])) for one in members]
    alone = chunked_sums(narrow, Mixture(own, mixture.weights, space), none, terms).sums[0]
    torch.testing.assert_close(cut, alone)


def test_a_mixture_may_be_a_member_and_be_kept():
    a, b, c = make_members()
    inner = Mixture([a, b], torch.tensor([1.0, 3.0]))
    outer = Mixture([inner, c], torch.tensor([2.0, 1.0]))
    flat = Mixture([a, b, c], torch.tensor([0.5, 1.5, 1.0]))
    for pair in zip(run(outer, ForwardKLLoss()), run(flat, ForwardKLLoss()), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-12)
    kept = keep_top_k(outer, 4, chunk_size=6)
    expected = kept_of(averaged([a, b, c], flat.weights, "probabilities"), 4)
    assert torch.equal(kept.ids, expected.ids)
    torch.testing.assert_close(kept.log_probs, expected.log_probs)
    torch.testing.assert_close(kept.rest, expected.rest)


@every_space
def test_memory_is_a_chunks(space):
    members = [Projected(torch.randn(64, 4), Head(torch.randn(V, 4))) for _ in range(5)]
    student = Projected(torch.randn(64, 4).requires_grad_(), Head(torch.randn(V, 4)))
    terms = [Scoped(Divergence(ForwardKLLoss()), torch.ones(64, dtype=torch.bool), 1.0)]
    with SizeRecorder() as recorder:
        chunked_sums(
            student, Mixture(members, torch.ones(5), space), torch.zeros(64).long(), terms,
            chunk_size=4,
        ).total.backward()  # fmt: skip
    assert max(shape.numel() for shape in recorder.shapes if V in shape) <= V * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": []}, "rows must be at least one"),
        ({"rows": make_members()[:2]}, r"weights must be \[M\] or \[N, M\].*\[2\].* got \[3\]"),
        ({"weights": torch.ones(N - 1, 3)}, r"\[3\] or \[19, 3\], got \[18, 3\]"),
        ({"weights": torch.tensor([1.0, -1.0, 1.0])}, "weights must be at least 0"),
        ({"weights": torch.zeros(N, 3)}, "one above 0 in each row"),
        ({"weights": torch.tensor([1.0, torch.nan, 1.0])}, "weights must be at least 0"),
        ({"weights": torch.tensor([1.0, torch.inf, 1.0])}, "weights must be at least 0"),
        ({"space": "odds"}, "space must be probabilities or logits, got odds"),
        (
            {"rows": make_members((V, V + 5000, V))},
            r"rows must be of one vocabulary, got \[31, 5031, 31\] ids",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    fits = {"rows": make_members(), "weights": torch.ones(3)}
    with pytest.raises(ValueError, match=message):
        Mixture(**fits | change)


def test_members_of_other_lengths_and_kept_ones_are_refused():
    a, b, _ = make_members()
    short = Projected(b.hidden[1:], b.head)
    with pytest.raises(ValueError, match=f"rows must be {N} like the first member's, got {N - 1}"):
        Mixture([a, short], torch.ones(2))
    with pytest.raises(ValueError, match=r"averages whole rows, .* most probable ids were kept"):
        Mixture([a, kept_of(logits_of(b), 4)], torch.ones(2))
