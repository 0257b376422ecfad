"""Which earlier positions a packed row's position may look at, made from its document ids.

Shapes: B batch, S positions.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def with_mask(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """A decoder's keyword arguments: for packed rows ``documents`` becomes the ``mask``.

    The mask is made where the batch lies, right before its forward, and is as short-lived as that:
    a dense one is S times the size of everything else. A GPU that has FlexAttention takes a block
    mask, everything else a dense one, [B, S, S].
    """
    given: dict[str, Any] = dict(inputs)
    given.pop("lengths", None)
    documents = given.pop("documents", None)
    if documents is not None:
        given["mask"] = _shared_mask(documents)
    return given


# The newest documents, not kept alive, and their mask: student and teacher share it.
_newest: list[Any] = []


def _shared_mask(documents: Tensor) -> Any:
    if _newest and _newest[0]() is documents:
        return _newest[1]
    _newest.clear()  # two at a time would be too many
    make = block_mask if _has_flex_attention(documents.device) else dense_mask
    _newest[:] = weakref.ref(documents, _forget), make(documents)
    return _newest[1]


def _forget(reference: weakref.ref[Tensor]) -> None:
    if _newest and _newest[0] is reference:
        _newest.clear()


def _has_flex_attention(device: torch.device) -> bool:
    # What torchtune's attention asks for, too.
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 5)


def dense_mask(documents: Tensor) -> Tensor:
    """True where a position (row) sees another (column), bool [B, S, S]; padding sees padding."""
    num_rows, length = documents.shape
    rows = torch.arange(num_rows, device=documents.device)[:, None, None]
    positions = torch.arange(length, device=documents.device)
    return _sees(documents)(rows, None, positions[:, None], positions)


def block_mask(documents: Tensor) -> Any:
    """The same for FlexAttention: which blocks of 128 x 128 positions it has to look into."""
    # Imported here, because only a GPU needs it.
    from torch.nn.attention.flex_attention import create_block_mask

    num_rows, length = documents.shape
    return create_block_mask(
        _sees(documents), num_rows, None, length, length, device=documents.device
    )


def _sees(documents: Tensor) -> Callable[[Any, Any, Any, Any], Tensor]:
    """Whether in row b (of any head) position q sees position k: FlexAttention's ``mask_mod``."""

    def sees(b: Any, h: Any, q: Any, k: Any) -> Tensor:
        return (q >= k) & (documents[b, q] == documents[b, k])

    return sees
