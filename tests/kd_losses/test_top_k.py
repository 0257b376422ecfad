"""What is kept of a teacher: its top k and the mass of the rest."""

import math

import pytest
import torch
from kept_cases import DT, N, V, kept_of, logits_of, make_teacher, randn
from test_linear_kd import SizeRecorder

from kd_losses import ForwardKLLoss, Head, Projected, TopK, keep_top_k

TEMPERATURES = (1.0, 2.0, 0.5)


def same(kept, expected, **tolerance):
    assert torch.equal(kept.ids, expected.ids)
    assert (kept.size, kept.temperatures) == (expected.size, expected.temperatures)
    for name in ("log_probs", "rest"):
        one, other = getattr(kept, name), getattr(expected, name)
        torch.testing.assert_close(one.double(), other, **tolerance)


@pytest.mark.parametrize("k", [1, 7, V - 1, V])
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_what_is_kept_of_logits(k, dtype, rtol):
    # Logits that bf16 has, all of them different.
    order = torch.stack(
        [torch.randperm(V, generator=torch.Generator().manual_seed(i)) for i in range(N)]
    )
    logits = order.double() / 4
    kept = TopK.of_logits(logits.to(dtype), k, TEMPERATURES, dtype)
    assert kept.log_probs.dtype == kept.rest.dtype == dtype
    same(kept, kept_of(logits, k, *TEMPERATURES), rtol=rtol, atol=rtol)
    more = TopK.of_logits(logits, V + 3)
    assert more.ids.shape == (N, V)


def test_a_tiny_rest_keeps_its_digits():
    """Of 1 − Σ p nothing would be left in fp32."""
    logits = torch.zeros(1, 1001)
    logits[0, 5] = 35.0
    kept = TopK.of_logits(logits, 1)
    expected = 1000 / (math.exp(35) + 1000)
    assert expected < 1e-12
    assert kept.rest.exp().item() == pytest.approx(expected, rel=1e-5)
    assert kept.log_p()[0, 1].exp().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, 7, V])
def test_the_distribution_between_kept_and_others(k, temperature):
    logits = randn(N, V, seed=0, scale=3)
    p = (logits / temperature).softmax(-1)
    kept = TopK.of_logits(logits, k, TEMPERATURES)
    inside = p.gather(-1, kept.ids)
    expected = torch.cat([inside, 1 - inside.sum(-1, keepdim=True)], dim=-1)
    torch.testing.assert_close(kept.log_p(temperature).exp(), expected, rtol=1e-10, atol=1e-13)
    assert kept.log_p(temperature).isfinite().all()


def test_what_was_rounded_is_still_a_distribution():
    kept = TopK.of_logits(randn(N, V, seed=0, scale=3), 5, (1.0, 2.0), torch.float16)
    for temperature in (1.0, 2.0):
        log_p = kept.log_p(temperature)
        assert log_p.dtype == torch.float32
        torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(N))


def test_no_rest_is_a_probability_of_nothing_but_finite():
    kept = TopK(torch.tensor([[2, 0]]), torch.tensor([[0.75, 0.25]]).log(),
                torch.tensor([[-torch.inf]]), 9)  # fmt: skip
    log_p = kept.log_p()[0]
    assert log_p.isfinite().all()
    torch.testing.assert_close(log_p.exp(), torch.tensor([0.75, 0.25, 0.0]))


@pytest.mark.parametrize("rest", [0.0, -3.0, -torch.inf, torch.nan])
def test_no_other_id_has_no_probability_whatever_the_rest_says(rest):
    log_probs = torch.tensor([[0.75, 0.25]]).log()
    kept = TopK(torch.tensor([[1, 0]]), log_probs, torch.tensor([[rest]]), 2)
    assert torch.equal(kept.log_p()[0, 2].exp(), torch.tensor(0.0))
    torch.testing.assert_close(kept.log_p()[:, :2], log_probs)
    student = torch.tensor([[0.5, 0.5]]).log()
    expected = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    value = ForwardKLLoss().per_token_top_k(student, kept, None)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_log_probabilities_at_any_ids():
    logits, ids = randn(N, V, seed=0), torch.arange(V).expand(N, -1)
    kept, p = TopK.of_logits(logits, 4), logits.softmax(-1)
    inside = torch.zeros(N, V, dtype=torch.bool).scatter(-1, kept.ids, True)
    each = (1 - p.gather(-1, kept.ids).sum(-1, keepdim=True)) / (V - 4)
    torch.testing.assert_close(kept.log_probs_at(ids).exp(), p.where(inside, each))
    assert torch.equal(kept.holds(ids), inside)
    whole = TopK.of_logits(logits, V)
    torch.testing.assert_close(whole.log_probs_at(ids).exp(), p)


@pytest.mark.parametrize("chunk_size", [1, 5, None])
def test_rows_are_kept_chunk_by_chunk(chunk_size):
    teacher = make_teacher()
    kept = keep_top_k(teacher, 6, TEMPERATURES, chunk_size=chunk_size)
    same(kept, kept_of(logits_of(teacher), 6, *TEMPERATURES), rtol=1e-10, atol=1e-12)


def test_no_rows_are_kept_as_none():
    kept = keep_top_k(Projected(torch.zeros(0, DT), Head(torch.zeros(V, DT))), 4, (1.0, 2.0))
    assert (kept.ids.shape, kept.rest.shape, kept.size) == ((0, 4), (0, 2), V)


def test_keeping_takes_no_memory_of_tokens_times_vocabulary():
    teacher = Projected(torch.randn(64, DT), Head(torch.randn(V, DT)))
    with SizeRecorder() as recorder:
        keep_top_k(teacher, 3, chunk_size=4)
    assert max(shape.numel() for shape in recorder.shapes if V in shape) <= V * DT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.zeros(3, 2)}, "ids must be integers"),
        (
            {"log_probs": torch.zeros(3, 1)},
            r"log_probs \[N, K\].*got torch.int64 \[3, 2\], \[3, 1\]",
        ),
        ({"rest": torch.zeros(3)}, r"rest \[N, 1\], got .*\[3\]"),
        ({"rest": torch.zeros(3, 2)}, r"rest \[N, 1\]"),
        ({"size": 1}, r"K must be within \[1, 1\], got 2"),
        ({"temperatures": (0.0,)}, "temperatures must be above 0, got 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    fits = {"ids": torch.zeros(3, 2, dtype=torch.long), "log_probs": torch.zeros(3, 2),
            "rest": torch.zeros(3, 1), "size": 5}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        TopK(**fits | change)


def test_other_temperatures_and_no_ids_are_refused():
    with pytest.raises(ValueError, match=r"temperature must be in \(1.0,\), got 2.0"):
        TopK.of_logits(torch.zeros(2, 5), 2).log_p(2.0)
    with pytest.raises(ValueError, match="k must be above 0, got 0"):
        TopK.of_logits(torch.zeros(2, 5), 0)
