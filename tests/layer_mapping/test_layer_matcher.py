import pytest
import torch
import torch.nn.functional as F

from layer_mapping import (
    CosineLoss,
    LayerMatcher,
    LayerTaps,
    MSELoss,
    NormalizedMSELoss,
    PairLoss,
    Projection,
    RelationalLoss,
    forward,
    in_order_random,
)

PAIRS = [(0, 3), (1, 7), (2, 3)]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_taps(student_dim=6, teacher_dim=6, dtype=torch.float64):
    """Taps of a student with layers 0-2 and a teacher with layers 3 and 7; [B, S] = [2, 5]."""
    student = {i: draw(2, 5, student_dim, seed=i).to(dtype).requires_grad_() for i in range(3)}
    teacher = {i: draw(2, 5, teacher_dim, seed=10 + i).to(dtype) for i in (3, 7)}
    return student, teacher


@pytest.fixture
def mask():
    return torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1]], dtype=torch.bool)


def cosine_of_pair(student, teacher, mask, pair):
    """1 − cos at the masked positions of one pair, position by position."""
    positions = mask.nonzero().tolist()
    s, t = student[pair[0]], teacher[pair[1]]
    return sum(1 - F.cosine_similarity(s[b, i], t[b, i], dim=0) for b, i in positions)


@pytest.mark.parametrize(
    ("reduction", "weights", "factors"),
    [
        ("sum", None, [1, 1, 1]),
        ("mean", None, [1 / 3, 1 / 3, 1 / 3]),
        ("sum", [1, 0.5, 2], [1, 0.5, 2]),
        ("mean", [1, 0, 3], [0.25, 0, 0.75]),
    ],
)
def test_total_reduces_the_pairs(mask, reduction, weights, factors):
    student, teacher = make_taps()
    matcher = LayerMatcher(PAIRS, CosineLoss(reduction=reduction, pair_weights=weights), 6, 6)
    total, per_pair = matcher(student, teacher, mask)
    expected = [cosine_of_pair(student, teacher, mask, pair) for pair in PAIRS]
    torch.testing.assert_close(total, sum(f * e for f, e in zip(factors, expected, strict=True)))
    assert list(per_pair) == ["s0-t3", "s1-t7", "s2-t3"]
    for value, pair_sum in zip(per_pair.values(), expected, strict=True):
        torch.testing.assert_close(value, pair_sum.detach())
        assert not value.requires_grad


def test_positions_outside_the_mask_do_not_count(mask):
    student, teacher = make_taps()
    matcher = LayerMatcher(PAIRS, MSELoss(), 6, 6)
    total = matcher(student, teacher, mask).total
    poisoned = {i: tap.masked_fill(~mask[..., None], float("nan")) for i, tap in teacher.items()}
    again = matcher(student, poisoned, mask).total
    assert torch.equal(again, total)
    again.backward()
    for tap in student.values():
        assert torch.equal(tap.grad.ne(0).any(-1), mask)


@pytest.mark.parametrize("loss", [CosineLoss, MSELoss, NormalizedMSELoss])
def test_total_adds_up_over_positions(mask, loss):
    student, teacher = make_taps(4, 6)
    matcher = LayerMatcher(PAIRS, loss(), 4, 6).double()
    whole = matcher(student, teacher, torch.ones_like(mask)).total
    parts = matcher(student, teacher, mask).total + matcher(student, teacher, ~mask).total
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("projection", ["auto", "always"])
def test_student_equal_to_teacher_is_zero(mask, projection):
    student, _ = make_taps(dtype=torch.bfloat16)
    matcher = LayerMatcher([(0, 0), (1, 1)], CosineLoss(), 6, 6, projection)
    result = matcher(student, {i: tap.detach() for i, tap in student.items()}, mask)
    assert result.total.item() == 0
    assert [value.item() for value in result.per_pair.values()] == [0, 0]


@pytest.mark.parametrize("dims", [(4, 6), (6, 4), (6, 6)])
def test_gradients_reach_projections_and_student_and_not_the_teacher(mask, dims):
    student, teacher = make_taps(*dims)
    for tap in teacher.values():
        tap.requires_grad_()
    matcher = LayerMatcher(PAIRS, CosineLoss(), *dims, projection="always")
    matcher(student, teacher, mask).total.backward()
    assert all(tap.grad.abs().sum() > 0 for tap in student.values())
    assert all(tap.grad is None for tap in teacher.values())
    gradients = [p.grad for p in matcher.parameters()]
    assert len(gradients) == 3
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_gradcheck_through_a_projection(mask):
    student, teacher = make_taps(3, 5)
    matcher = LayerMatcher([(0, 3)], CosineLoss(), 3, 5).double()
    weight = draw(5, 3, seed=20).requires_grad_()

    def total(tap, weight):
        parameters = {"projections.s0.weight": weight}
        return torch.func.functional_call(matcher, parameters, ({0: tap}, teacher, mask)).total

    assert torch.autograd.gradcheck(total, (student[0], weight))


@pytest.mark.parametrize("dims", [(4, 6), (6, 4), (6, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projection_starts_as_the_identity(dims, dtype):
    narrow = min(dims)
    hidden = draw(3, dims[0]).to(dtype)
    projected = Projection(*dims)(hidden)
    assert projected.dtype == dtype
    assert torch.equal(projected[:, :narrow], hidden[:, :narrow])
    assert projected[:, narrow:].abs().sum() == 0


@pytest.mark.parametrize(
    ("projection", "teacher_dim", "shapes"),
    [("auto", 6, []), ("never", 6, []), ("always", 6, [(6, 6)] * 3), ("auto", 8, [(8, 6)] * 3)],
)
def test_projections_exist_where_they_are_wanted(projection, teacher_dim, shapes):
    matcher = LayerMatcher(PAIRS, CosineLoss(), 6, teacher_dim, projection)
    assert [tuple(p.shape) for p in matcher.parameters()] == shapes


@pytest.mark.parametrize(
    ("projection", "shapes"), [("auto", []), ("never", []), ("always", [(8, 6)] * 3)]
)
def test_relations_need_no_projection(mask, projection, shapes):
    student, teacher = make_taps(6, 8)
    matcher = LayerMatcher(PAIRS, RelationalLoss(), 6, 8, projection).double()
    assert [tuple(p.shape) for p in matcher.parameters()] == shapes
    # A projection starts as the zero-padded identity, which leaves all relations as they are.
    plain = LayerMatcher(PAIRS, RelationalLoss(), 6, 8)(student, teacher, mask).total
    torch.testing.assert_close(matcher(student, teacher, mask).total, plain)


def test_a_row_is_a_document_unless_documents_are_given(mask):
    student, teacher = make_taps(6, 8)
    matcher = LayerMatcher(PAIRS, RelationalLoss(), 6, 8)
    rows = [
        matcher(
            {i: tap[[row]] for i, tap in student.items()},
            {i: tap[[row]] for i, tap in teacher.items()},
            mask[[row]],
        ).total
        for row in (0, 1)
    ]
    torch.testing.assert_close(matcher(student, teacher, mask).total, sum(rows))
    documents = torch.tensor([[0, 0, 0, 1, 1], [2, 2, 2, 2, 2]])
    split = matcher(student, teacher, mask, documents).total
    assert not torch.isclose(split, sum(rows), rtol=1e-3)
    again = [mask & (documents == number) for number in range(3)]
    alone = [matcher(student, teacher, one).total for one in again]
    torch.testing.assert_close(split, sum(alone))


def test_a_loss_of_ones_own_that_compares_two_tokens(mask):
    """All that it says is the distance of two tokens; documents are not its business."""

    class L1(PairLoss):
        def distance(self, student, teacher):
            return (student - teacher).abs().sum(-1)

    student, teacher = make_taps()
    total = LayerMatcher([(0, 3)], L1(), 6, 6)(student, teacher, mask, torch.zeros(2, 5)).total
    torch.testing.assert_close(total, (student[0] - teacher[3])[mask].abs().sum())


def test_projection_weights_are_fp32_and_work_with_bf16(mask):
    student, teacher = make_taps(4, 6, dtype=torch.bfloat16)
    torch.set_default_dtype(torch.bfloat16)
    try:
        matcher = LayerMatcher(PAIRS, CosineLoss(), 4, 6)
    finally:
        torch.set_default_dtype(torch.float32)
    total = matcher(student, teacher, mask).total
    total.backward()
    assert total.dtype == torch.float32
    for parameter in matcher.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
    assert all(tap.grad.dtype == torch.bfloat16 for tap in student.values())
    # Zero-padded identity: the teacher's last two entries only add to its length.
    exact, _ = LayerMatcher(PAIRS, CosineLoss(), 6, 6)(
        {i: F.pad(tap.detach().double(), (0, 2)) for i, tap in student.items()},
        {i: tap.double() for i, tap in teacher.items()},
        mask,
    )
    torch.testing.assert_close(total.double(), exact, rtol=1e-6, atol=0)


def test_nothing_masked_is_zero_with_zero_gradients(mask):
    student, teacher = make_taps(4, 6)
    matcher = LayerMatcher(PAIRS, CosineLoss(), 4, 6)
    total, per_pair = matcher(student, teacher, torch.zeros_like(mask))
    total.backward()
    assert total.item() == 0
    assert all(value.item() == 0 for value in per_pair.values())
    for leaf in [*student.values(), *matcher.parameters()]:
        assert leaf.grad is not None
        assert leaf.grad.abs().sum() == 0


def test_no_pairs_give_zero(mask):
    matcher = LayerMatcher([], CosineLoss(), 4, 6)
    total, per_pair = matcher({}, {}, mask)
    assert total.item() == 0
    assert per_pair == {}
    assert matcher.student_layers == matcher.teacher_layers == []


def test_layers_to_tap_are_sorted_and_unique():
    matcher = LayerMatcher([(2, 7), (0, 9), (2, 3), (1, 7)], CosineLoss(), 6, 6)
    assert matcher.student_layers == [0, 1, 2]
    assert matcher.teacher_layers == [3, 7, 9]


def test_a_pair_listed_twice_counts_twice(mask):
    student, teacher = make_taps(4, 6)
    once = LayerMatcher([(0, 3)], CosineLoss(reduction="sum"), 4, 6)(student, teacher, mask)
    twice = LayerMatcher([(0, 3)] * 2, CosineLoss(reduction="sum"), 4, 6)(student, teacher, mask)
    torch.testing.assert_close(twice.total, 2 * once.total)
    assert twice.per_pair == once.per_pair


def test_a_student_layer_has_a_projection_per_pair():
    matcher = LayerMatcher([(1, 3), (0, 3), (1, 7)], CosineLoss(), 4, 6)
    names = [name for name, _ in matcher.named_parameters()]
    assert names == [f"projections.{slot}.weight" for slot in ("s1", "s0", "s1_1")]


def test_new_pairs_keep_projections_with_their_student_layer(mask):
    student, teacher = make_taps(4, 6)
    teacher[5] = draw(2, 5, 6, seed=30)
    matcher = LayerMatcher([(0, 3), (2, 7)], CosineLoss(), 4, 6)
    for parameter in matcher.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(4))
    parameters = dict(matcher.named_parameters())
    matcher.set_pairs([(0, 5), (2, 3)])
    assert matcher.teacher_layers == [3, 5]
    assert all(parameters[name] is p for name, p in matcher.named_parameters())

    renewed = LayerMatcher([(0, 5), (2, 3)], CosineLoss(), 4, 6)
    renewed.load_state_dict(matcher.state_dict())
    expected = renewed(student, teacher, mask)
    actual = matcher(student, teacher, mask)
    assert torch.equal(actual.total, expected.total)
    assert list(actual.per_pair) == ["s0-t5", "s2-t3"]


def test_new_pairs_of_other_student_layers_are_an_error():
    matcher = LayerMatcher([(0, 3), (2, 7)], CosineLoss(), 6, 6)
    with pytest.raises(ValueError, match=r"changed from \[0, 2\] to \[2, 0\]"):
        matcher.set_pairs([(2, 7), (0, 3)])


def test_each_epoch_of_in_order_random_fits_the_matcher():
    matcher = LayerMatcher(in_order_random(3, 12), CosineLoss(), 4, 6)
    for epoch in range(5):
        pairs = in_order_random(3, 12, epoch=epoch)
        matcher.set_pairs(pairs)
        assert matcher.teacher_layers == [t for _, t in pairs]


def test_unequal_widths_without_projection():
    words = r"width 2048 differs from the teacher's 3072: CosineLoss needs"
    with pytest.raises(ValueError, match=words):
        LayerMatcher(PAIRS, CosineLoss(), 2048, 3072, projection="never")


def test_an_unknown_projection_mode():
    with pytest.raises(ValueError, match="one of auto, always, never, not 'linear'"):
        LayerMatcher(PAIRS, CosineLoss(), 6, 6, projection="linear")


def test_pair_weights_of_another_number():
    with pytest.raises(ValueError, match="2 pair_weights for 3 layer pairs"):
        LayerMatcher(PAIRS, CosineLoss(pair_weights=[1, 2]), 6, 6)


def test_a_student_against_its_own_copy(decoder, make_decoder, tokens):
    """Taps and matcher together: a copy has nothing to learn, a perturbed copy moves closer."""
    teacher = make_decoder().requires_grad_(False)
    pairs = forward(4, 4)
    matcher = LayerMatcher(pairs, CosineLoss(), 8, 8)
    student_taps = LayerTaps(decoder, matcher.student_layers)
    teacher_taps = LayerTaps(teacher, matcher.teacher_layers)
    mask = torch.ones_like(tokens, dtype=torch.bool)

    def total():
        with student_taps, teacher_taps:
            decoder(tokens)
            with torch.no_grad():
                teacher(tokens)
        return matcher(student_taps.outputs, teacher_taps.outputs, mask).total

    assert total().item() == 0
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    optimizer = torch.optim.SGD(decoder.parameters(), lr=1e-2)
    before = total()
    before.backward()
    optimizer.step()
    assert 0 < total().item() < before.item()
