"""What the parts of an objective are built from."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from kd_config.components import component, expect

from hf_models.model import ModelFacts
from kd_config.schema import RunConfig
from kd_losses import KDLoss


@dataclass(frozen=True)
class Parts:
    """What a term may look at when it is built, before any weight is read.

    Attributes:
        config: The run's config.
        weights: The weight of each key of ``manual_scales``.
        student: The student's sizes.
        teacher: The teacher's; None where no part of the loss has to look at one.
        device: Where a term's own parameters go.
        ignore_index: The label of positions without a target.
    """

    config: RunConfig
    weights: Mapping[str, float]
    student: ModelFacts
    teacher: ModelFacts | None
    device: torch.device
    ignore_index: int

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
