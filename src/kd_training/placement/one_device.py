"""Where a run lives. The loop asks a placement and never looks at ranks or devices itself."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchtune import training, utils

from hf_models.loading import load
from hf_models.model import AnyRank, Model
from hf_models.quantization import quantize


class Placement(Protocol):
    """What differs between one device and many."""

    command: str  # what starts such a run: ``tune run <command> --config …``
    device: torch.device
    rank: int
    world_size: int
    group: Any  # of all ranks, for what they tell one another on the host; None without ranks

    def place(self, model: Model, checkpointer: Any) -> None:
        """Give a model on the meta device the checkpointer's weights, each in its dtype."""

    def place_teacher(self, model: Model, checkpointer: Any, quantization: Any = None) -> None:
        """The same for a frozen model, which may be placed otherwise, in 4 or 8 bits."""

    def place_module(self, module: nn.Module) -> None:
        """Take over a small module that already has its weights, the same on every rank."""

    def for_generation(self, model: Model, gather: bool) -> AbstractContextManager[AnyRank | None]:
        """While it lasts, the model is called many times, and not equally often on every rank.

        Args:
            model: One that is placed here.
            gather: Whether to gather its weights, where they are sharded.

        Returns:
            What `hf_models.model.Model.generate` asks the ranks with; None where none need be.
        """

    def backward(self, total: Tensor) -> None:
        """Add the gradient of ``total``, summed over ranks, to the parameters'."""

    def clip_grad_norm(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Clip the gradients to a global norm, and return what it was."""

    def sum(self, values: Tensor) -> Tensor:
        """The elementwise sum of ``values`` over all ranks."""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's plain ``value``, by rank."""

    def wait(self) -> None:
        """Return when all ranks have come here, however long it takes them."""

    def full_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """All of the model's weights on the CPU (on rank 0; empty elsewhere)."""


class OneDevice:
    """Everything on one device: the sums are the values themselves, the state is the model's."""

    command = "kd_single_device"
    rank = 0
    world_size = 1
    group = None

    def __init__(self, device: str) -> None:
        self.device = find_device(device)

    def place(self, model: Model, checkpointer: Any) -> None:
        """Give a model on the meta device the checkpointer's weights, each in its dtype."""
        load(model, read_weights(checkpointer), self.device)

    def place_teacher(self, model: Model, checkpointer: Any, quantization: Any = None) -> None:
        """The same for a frozen model, in 4 or 8 bits if asked for."""
        load_whole(model, checkpointer, self.device, quantization)

    def place_module(self, module: nn.Module) -> None:
        """Move the module to the device."""
        module.to(self.device)

    def for_generation(self, model: Model, gather: bool) -> AbstractContextManager[None]:
        """Nothing to prepare."""
        return nullcontext()

    def backward(self, total: Tensor) -> None:
        """Add the gradient of ``total`` to the parameters'."""
        total.backward()

    def clip_grad_norm(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Clip the gradients to a global norm, and return what it was."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def sum(self, values: Tensor) -> Tensor:
        """``values``: there is nothing to add to them."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """``[value]``."""
        return [value]

    def wait(self) -> None:
        """Nothing to wait for."""

    def full_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's weights on the CPU, without a copy where they are there already."""
        return {name: value.detach().cpu() for name, value in model.state_dict().items()}


def load_whole(model: Model, checkpointer: Any, device: torch.device, quantization: Any) -> None:
    """Put a whole frozen model on a device; one in few bits never lies there unquantised."""
    if quantization is None:
        load(model, read_weights(checkpointer), device)
        return
    load(model, read_weights(checkpointer), "cpu")
    quantize(model.module, quantization, device, model.stacks().values())


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: If it is not there.
    """
    try:
        wanted, device = torch.device(name), utils.get_device(name)
    except (RuntimeError, AttributeError) as err:
        why = " ".join(str(err).split())
        raise ValueError(f"config: device {name!r} cannot be used: {why}") from err
    # torchtune takes the CPU instead of a GPU that is not there.
    if device.type != wanted.type:
        raise ValueError(f"config: device {name!r} is not there; set device=cpu to run on the CPU")
    return device


def read_weights(checkpointer: Any) -> dict[str, Tensor]:
    """A checkpointer's model weights."""
    return checkpointer.load_checkpoint()[training.MODEL_KEY]
