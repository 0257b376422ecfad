"""What of a teacher's answers a config's loss needs to be kept."""

from typing import Any

import torch

from hf_models.model import Model
from kd_config.schema import RunConfig
from kd_teachers.signal import Needs
from kd_teachers.store.contents import HIDDEN, NONE, TOP_K, Contents, Tapped

_LOG_PROBS = {"fp32": "float32", "fp16": "float16"}


def contents_of(config: RunConfig, needs: Needs, model: Model, dtype: torch.dtype) -> Contents:
    """What is to be kept.

    Args:
        config: A run's config; its ``cache`` says how the distribution is kept.
        needs: What the terms of its loss ask of the teacher.
        model: The teacher, on the meta device.
        dtype: What it computes in.

    Raises:
        ValueError: If nothing is needed, or it cannot be kept in that way.
    """
    kind = config.cache.logits if needs.distribution else NONE
    taps = tuple(
        Tapped(stack=stack, layer=layer, width=model.facts.stacks[stack].width)
        for stack, layer in sorted(needs.taps)
    )
    if kind == NONE and not taps:
        raise ValueError(
            "config: there is nothing to keep: no part of the loss that has a weight asks the "
            "teacher (or cache.logits is none)"
        )
    weight: Any = model.head().weight
    vocabulary, width = weight.shape
    top_k: dict[str, Any] = {}
    if kind == TOP_K:
        _check_favourites(config, needs)
        top_k = {
            "k": min(config.cache.k, vocabulary),
            "temperatures": tuple(sorted({1.0, *needs.temperatures})),
            "log_probs": _LOG_PROBS[config.cache.log_probs],
        }
    return Contents(
        logits=kind,
        dtype=str(dtype).removeprefix("torch."),
        width=width,
        vocabulary=vocabulary,
        taps=taps,
        **top_k,
    )


def _check_favourites(config: RunConfig, needs: Needs) -> None:
    if needs.whole:
        raise ValueError(
            "config: cache.logits is top_k, but a part of the loss needs the teacher's whole "
            "distribution; set cache.logits: hidden"
        )
    if config.cache.k < needs.top_k:
        raise ValueError(
            f"config: cache.k is {config.cache.k}, but a part of the loss needs the "
            f"{needs.top_k} most probable tokens; set cache.k: {needs.top_k}"
        )
