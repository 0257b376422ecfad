"""What of a teacher's answers a config's loss needs to be kept."""

from typing import Any

import torch

from hf_models.model import Model
from kd_config.schema import RunConfig
from kd_teachers.signal import Needs
from kd_teachers.store.contents import NONE, TOP_K, Contents, Tapped

_LOG_PROBS = {"fp32": "float32", "fp16": "float16"}


def contents_of(
    config: RunConfig, needs: Needs, model: Model, outputs: int, dtype: torch.dtype
) -> Contents:
    """What is to be kept.

    Args:
        config: A run's config; its ``cache`` says how the distribution is kept.
        needs: What the terms of its loss ask of the teacher.
        model: The teacher, on the meta device.
        outputs: Number of the student's ids.
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
        # Ids that only the teacher has are nobody's business: padding of its head.
        vocabulary = min(vocabulary, outputs)
        temperatures = {one.temperature for one in needs.reads if one.temperature is not None}
        top_k = {
            "k": min(config.cache.k, vocabulary),
            "temperatures": tuple(sorted({1.0, *temperatures})),
            "log_probs": _LOG_PROBS[config.cache.log_probs],
        }
        _check_favourites(needs, vocabulary, **top_k)
    return Contents(
        logits=kind,
        dtype=str(dtype).removeprefix("torch."),
        width=width,
        vocabulary=vocabulary,
        taps=taps,
        **top_k,
    )


def _check_favourites(
    needs: Needs, vocabulary: int, k: int, temperatures: tuple[float, ...], **_: Any
) -> None:
    for reads in needs.reads:
        if missing := reads.missing(k, temperatures, vocabulary):
            raise ValueError(
                f"config: cache.logits is top_k, but a part of the loss {missing}; or set "
                "cache.logits: hidden"
            )
