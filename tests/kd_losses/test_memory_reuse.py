"""Memory is used again only in ways that torch documents."""

from typing import Any

import pytest
import torch
from kd_loss_cases import Case, every_case
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd_losses import LinearKDLoss

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


class WritesWhatItReads(TorchDispatchMode):
    """Collects the operations whose ``out`` lies in the memory of an input.

    torch documents methods that end in ``_`` to work in place, but nothing of the kind for ``out``:
    whether a kernel reads all of a row before it writes the first result differs by kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        names = {argument.name for argument in func._schema.arguments if argument.is_out}
        written = self._places({k: v for k, v in kwargs.items() if k in names})
        read = self._places([args, {k: v for k, v in kwargs.items() if k not in names}])
        if written & read:
            self.found.append(str(func))
        return func(*args, **kwargs)

    @staticmethod
    def _places(tree: Any) -> set[int]:
        tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
        return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}


def test_such_an_operation_is_seen() -> None:
    x = torch.randn(3, 5)
    with WritesWhatItReads() as mode:
        torch.log_softmax(x, dim=-1, out=x)
        torch.addcmul(x, x, x, out=torch.empty_like(x)).exp_()
    assert mode.found == ["aten.log_softmax.int_out"]


@every_case
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("ce_weight", [0.0, 0.5])
@pytest.mark.parametrize("device", DEVICES)
def test_no_result_overwrites_what_it_is_computed_from(
    case: Case, temperature: float, ce_weight: float, device: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    student, head, teacher, teacher_head = (
        torch.randn(*shape, generator=generator).to(device)
        for shape in [(9, 6), (29, 6), (9, 8), (29, 8)]
    )
    labels = torch.randint(29, (9,), generator=generator).to(device)
    linear = LinearKDLoss(case.make(temperature), ce_weight, 0.7, chunk_size=4)
    with WritesWhatItReads() as mode:
        linear(student.requires_grad_(), head, teacher, teacher_head, labels).total.backward()
    assert mode.found == []
