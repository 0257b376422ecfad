"""Weights in the order in which a CPU multiplies few rows by them.

A product of some ten rows reads every weight, and torch's own brings the weights into another order
each time, which takes longer than the product. Writing a text does that for each token. So the
weights are brought into oneDNN's order once, with their adapters merged into them: a copy that
lives as long as the writing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.modules.peft import LoRALinear

from hf_models.torchtune_decoder.lora import effective_weight
from kd_losses import Head

Logits = Callable[[Tensor], Tensor]


@contextmanager
def packed(module: Any) -> Iterator[None]:
    """While it lasts, the linear layers of a decoder's blocks multiply by packed copies.

    Only those in fp32 on a CPU do, whole and not quantised; without a gradient.
    """
    layers = list(module.layers.modules())
    adapted = [layer for layer in layers if isinstance(layer, LoRALinear)]
    inside = {id(part) for layer in adapted for part in layer.children()}
    plain = [one for one in layers if type(one) is nn.Linear and id(one) not in inside]
    changed: list[Any] = [layer for layer in (*adapted, *plain) if _fits(layer.weight)]
    try:
        for layer in changed:
            multiply = partial(_multiply, _pack(effective_weight(layer)), layer.bias)
            layer.forward, layer.of_gate = multiply, partial(_of_gate, multiply)
        yield
    finally:
        for layer in changed:
            del layer.forward, layer.of_gate


def packed_logits(head: Head) -> Logits:
    """`Head.logits` of a packed copy of its weight, where there can be one."""
    if not _fits(head.weight):
        return head.logits
    weight = _pack(head.weight)
    return lambda hidden: head.finish_(_multiply(weight, None, hidden))


def _fits(weight: Tensor) -> bool:
    whole = type(weight) in (Tensor, nn.Parameter)
    known = torch.backends.mkldnn.is_available() and weight.device.type == "cpu"
    return whole and known and weight.dtype == torch.float32


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)


_ROWS = 8  # that the order is best for; it is right for any number


def _multiply(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _of_gate(multiply: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    return multiply(F.silu(gate).mul_(up))
