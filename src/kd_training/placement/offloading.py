"""Activations that wait for their backward in host memory."""

from typing import Any

import torch
from torchtune.training import OffloadActivations

from kd_config.schema import RunConfig


def check_offloading(config: RunConfig) -> None:
    """Refuse what ``enable_activation_offloading`` can do nothing for.

    Without checkpointing a layer keeps its weights for the backward too, transposed, and each
    would be copied to the host in every forward: right, but slow, and without any gain.

    Raises:
        ValueError: If the device is no GPU, or activations are not checkpointed.
    """
    if torch.device(config.device).type != "cuda":
        raise ValueError(
            "config: enable_activation_offloading moves activations from a GPU to host memory, "
            f"but device is {config.device}; leave it false"
        )
    if not config.enable_activation_checkpointing:
        raise ValueError(
            "config: enable_activation_offloading needs enable_activation_checkpointing: true; "
            "it would move the frozen weights as well"
        )


def offload_activations(model: Any) -> None:
    """Make ``model(...)`` keep in host memory what its backward needs, by torchtune's own means.

    With checkpointed layers that is one tensor per layer. What is computed from the model's
    outputs (the loss, matched layers) stays on the device. Each forward must be followed by its
    backward through all layers before the next.
    """
    context, forward = OffloadActivations(), model.forward

    def offloaded(*args: Any, **kwargs: Any) -> Any:
        with context:
            return forward(*args, **kwargs)

    model.forward = offloaded
