"""Filling a model that was built on the meta device."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchtune.training import validate_no_params_on_meta_device

from hf_models.model import Model


class Ties:
    """Which of a module's parameters are one, such as embeddings and head.

    Loading by assignment gives each name a tensor of its own.

    Args:
        module: As it was built.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        groups: dict[int, list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            groups.setdefault(id(parameter), []).append(name)
        self.groups = [names for names in groups.values() if len(names) > 1]

    @property
    def again(self) -> set[str]:
        """The names of what has another one already."""
        return {name for _, *others in self.groups for name in others}

    def restore(self) -> None:
        """Make them one again."""
        for first, *others in self.groups:
            owner, own = self._place(first)
            for name in others:
                # Not by attribute: a layer may read its parameter in another dtype.
                other, again = self._place(name)
                other._parameters[again] = owner._parameters[own]

    def _place(self, name: str) -> tuple[nn.Module, str]:
        owner, _, own = name.rpartition(".")
        return self._module.get_submodule(owner), own


def load(model: Model, weights: Mapping[str, Tensor], device: torch.device | str) -> None:
    """Put weights into a model on the meta device; afterwards nothing lies there.

    Args:
        model: It.
        weights: What its directory was read as.
        device: Where it goes.

    Raises:
        ValueError: If a weight is missing, unexpected or of the wrong shape.
    """
    ties = Ties(model.module)
    state = {name: tensor.to(device) for name, tensor in model.complete_state(weights).items()}
    model.module.load_state_dict(state, assign=True)
    ties.restore()
    model.fill_buffers(device)
    validate_no_params_on_meta_device(model.module)
