"""Teachers that were kept as their top k, and what is known of them, made by hand in float64."""

import pytest
import torch
from kd_loss_cases import CASES
from torch import Tensor

from kd_losses import DistributionLoss, Head, Projected, TopK

N, V, DS, DT = 19, 31, 6, 8
IGNORE = -100

DISTRIBUTIONS = [case for case in CASES if isinstance(case.make(), DistributionLoss)]
every_distribution = pytest.mark.parametrize("case", DISTRIBUTIONS, ids=lambda case: case.id)


def randn(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def make_student(dtype: torch.dtype = torch.float64) -> Projected:
    hidden, weight = randn(N, DS, seed=1).to(dtype), randn(V, DS, seed=2).to(dtype)
    return Projected(hidden.requires_grad_(), Head(weight.requires_grad_()))


def make_teacher(dtype: torch.dtype = torch.float64) -> Projected:
    return Projected(randn(N, DT, seed=3).to(dtype), Head(randn(V, DT, seed=4).to(dtype)))


def make_labels() -> Tensor:
    labels = torch.randint(V, (N,), generator=torch.Generator().manual_seed(5))
    labels[::4] = IGNORE
    return labels


def logits_of(rows: Projected) -> Tensor:
    return rows.hidden.double() @ rows.head.weight.double().T


def kept_of(logits: Tensor, k: int, *temperatures: float) -> TopK:
    """Made from plain probabilities."""
    p = logits.double().softmax(-1)
    ids = p.argsort(-1, descending=True)[:, :k]
    left = p.scatter(-1, ids, 0.0)
    rest = torch.stack([(left ** (1 / t)).sum(-1).log() for t in temperatures or (1.0,)], dim=-1)
    return TopK(ids, p.gather(-1, ids).log(), rest, p.shape[-1], temperatures or (1.0,))


def merged(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the ids, and of all others together if there are any."""
    p = (logits / temperature).softmax(-1)
    others = torch.ones_like(p).scatter(-1, ids, 0.0)
    columns = [p.gather(-1, ids)]
    if ids.shape[1] < p.shape[-1]:
        columns.append((p * others).sum(-1, keepdim=True))
    return torch.cat(columns, dim=-1).log()


def gradients(total: Tensor, student: Projected) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, (student.hidden, student.head.weight))
