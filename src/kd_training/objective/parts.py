"""What the parts of an objective are built from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from hf_models.model import ModelFacts
from kd_config.components import component, expect
from kd_config.schema import RunConfig
from kd_losses import KDLoss
from kd_teachers import Teacher


@dataclass(frozen=True)
class Parts:
    """What a term may look at when it is built, before any weight is read.

    Attributes:
        config: The run's config.
        weights: The weight of each key of ``manual_scales``.
        student: The student's sizes.
        find_teacher: Builds whoever teaches, the first time that a term has to look at it.
        device: Where a term's own parameters go.
        ignore_index: The label of positions without a target.
    """

    config: RunConfig
    weights: Mapping[str, float]
    student: ModelFacts
    find_teacher: Callable[[], Teacher]
    device: torch.device
    ignore_index: int

    @property
    def teacher(self) -> ModelFacts:
        """The teacher's sizes.

        Raises:
            ValueError: If the config has none.
        """
        return self.find_teacher().facts

    def divergence(self, key: str) -> KDLoss | None:
        """The divergence that a key of the config names, if any.

        Raises:
            ValueError: If it is something else, or its labels are marked otherwise.
        """
        node = getattr(self.config, key)
        loss = component(node, key)
        if loss is None:
            return None
        kind = "a divergence of kd_losses, such as kd_losses.ForwardKLLoss, because it is computed "
        expect(isinstance(loss, KDLoss), node, key, kind + "straight from hidden states")
        if loss.ignore_index != self.ignore_index:
            raise ValueError(
                f"config: {key}.ignore_index is {loss.ignore_index}, but the labels use "
                f"{self.ignore_index}"
            )
        return loss
