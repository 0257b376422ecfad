"""The compiled arithmetic of a tile, by inductor on a CPU: the numbers of the plain one."""

import pytest
import torch

import kd_losses
from kd_losses import CrossEntropy, Divergence, Projected, Scoped, chunked_sums
from kd_losses.chunked import fused
from kd_losses.chunked.head import Head

QUICK = [kd_losses.ForwardKLLoss()]
MORE = [
    kd_losses.ReverseKLLoss(),
    kd_losses.JSDistanceLoss(),
    kd_losses.TVDistanceLoss(),
    kd_losses.AlphaBetaLoss(),
    kd_losses.SkewForwardKLLoss(),
    kd_losses.SymmetricKLLoss(lambda_weight=0.3),
]
CASES = [*QUICK, *(pytest.param(one, marks=pytest.mark.slow) for one in MORE)]


def stage(loss, weights, compiled, monkeypatch, rows=21):
    """Sums and gradients of a small loss stage."""
    monkeypatch.setattr(fused, "DEVICES", {"cpu"} if compiled else set())
    torch.manual_seed(0)
    hidden = torch.randn(rows, 8, requires_grad=True)
    head, teacher = torch.randn(50, 8, requires_grad=True), torch.randn(50, 8)
    labels = torch.randint(0, 50, (rows,))
    everywhere = torch.ones(rows, dtype=torch.bool)
    terms = [
        Scoped(CrossEntropy(), everywhere, weights[0]),
        Scoped(Divergence(loss), everywhere, weights[1]),
    ]
    rows_of = Projected(hidden, Head(head)), Projected(torch.randn(rows, 8), Head(teacher))
    result = chunked_sums(*rows_of, labels, terms, chunk_size=rows)
    result.total.backward()
    return [result.total, *result.sums, hidden.grad, head.grad]


@pytest.mark.parametrize("loss", CASES, ids=lambda one: type(one).__name__)
def test_a_compiled_tile_gives_the_plain_numbers(loss, monkeypatch):
    for weights in ((0.3, 0.7), (0.01, 2.0)):
        plain = stage(loss, weights, False, monkeypatch)
        compiled = stage(loss, weights, True, monkeypatch)
        for one, other in zip(compiled, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
    assert type(loss) not in fused._failed


def test_other_numbers_of_rows_and_other_weights_need_no_new_kernels(monkeypatch):
    loss = kd_losses.ForwardKLLoss()
    stage(loss, (0.5, 0.5), True, monkeypatch)
    stage(loss, (0.5, 0.5), True, monkeypatch, rows=13)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows, weight in ((7, 0.1), (30, 0.9)):
            stage(loss, (weight, 1 - weight), True, monkeypatch, rows)
    assert type(loss) not in fused._failed


def test_a_compiler_that_fails_is_done_without(monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(fused, "_compiled", lambda: broken)
    monkeypatch.setattr(fused, "_failed", set())
    loss = kd_losses.ReverseKLLoss()
    plain = stage(loss, (0.5, 0.5), False, monkeypatch)
    for _ in range(2):
        given = stage(loss, (0.5, 0.5), True, monkeypatch)
        assert all(torch.equal(a, b) for a, b in zip(given, plain, strict=True))
    assert len([r for r in caplog.records if "no compiler here" in r.message]) == 1
