"""Where a run lives. The loop asks a placement and never looks at ranks or devices itself."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torchtune import utils

from hf_models import load_weights


class Placement(Protocol):
    """What differs between one device and many."""

    device: torch.device
    rank: int
    world_size: int

    def place(self, model: nn.Module, state_dict: dict[str, Tensor], dtype: torch.dtype) -> None:
        """Give a decoder that was built on the meta device its weights, on this placement."""

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum of ``values`` over all ranks."""

    def full_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """All of the model's weights on the CPU (on rank 0; empty elsewhere)."""


class OneDevice:
    """Everything on one device: the sums are the values themselves, the state is the model's."""

    rank = 0
    world_size = 1

    def __init__(self, device: str) -> None:
        try:
            self.device = utils.get_device(device)
        except RuntimeError as err:
            why = " ".join(str(err).split())
            raise ValueError(f"config: device {device!r} cannot be used: {why}") from err

    def place(self, model: nn.Module, state_dict: dict[str, Tensor], dtype: torch.dtype) -> None:
        """Give a decoder that was built on the meta device its weights, on this device."""
        load_weights(model, state_dict, self.device, dtype)

    def sum(self, values: Tensor) -> Tensor:
        """``values``: there is nothing to add to them."""
        return values

    def full_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's weights on the CPU, without a copy where they are there already."""
        return {name: value.detach().cpu() for name, value in model.state_dict().items()}
