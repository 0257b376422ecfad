"""Which blocks of a teacher a student gets, and under which names its files keep them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_models.block_scores import (
    CRITERIA,
    Calibration,
    block_scores,
    kept_blocks,
)
from hf_models.loading import load
from hf_models.transformers_model.model import TransformersModel
from layer_mapping import forward

Layers = Sequence[int] | Mapping[str, Sequence[int]] | str | None
Count = int | Mapping[str, int] | None


@dataclass(frozen=True)
class Choice:
    """The blocks that are copied.

    Attributes:
        blocks: Stack → the teacher's blocks, in the student's order.
        chosen_by: How they were found.
        scores: Stack → what they were chosen by, if anything was measured.
    """

    blocks: dict[str, list[int]]
    chosen_by: str
    scores: dict[str, list[float]]


def choose_blocks(
    model: TransformersModel,
    teacher_dir: str | Path,
    layers: Layers,
    num_layers: Count,
    calibration: Iterable[Calibration] | None,
    device: str,
) -> Choice:
    """The blocks that ``layers`` and ``num_layers`` of `init_student` mean.

    Raises:
        ValueError: If they name blocks or stacks that are not there, or not enough.
    """
    depths = {name: stack.depth for name, stack in model.facts.stacks.items()}
    if isinstance(layers, str):
        return _measured(model, teacher_dir, layers, num_layers, calibration, device)
    if (layers is None) == (num_layers is None):
        raise ValueError("give either layers or num_layers")
    if layers is None:
        counts = _by_stack(num_layers, depths, "num_layers")
        evenly = {
            name: [teacher for _, teacher in forward(_fitting(n, depths[name]), depths[name])]
            for name, n in counts.items()
        }
        return Choice(_all_stacks(evenly, depths), "evenly spaced", {})
    named = _by_stack(layers, depths, "layers")
    listed = {name: _listed(one, depths[name]) for name, one in named.items()}
    return Choice(_all_stacks(listed, depths), "listed", {})


def _measured(
    model: TransformersModel,
    teacher_dir: str | Path,
    criterion: str,
    num_layers: Count,
    calibration: Iterable[Calibration] | None,
    device: str,
) -> Choice:
    if criterion not in CRITERIA:
        raise ValueError(
            f"layers is {criterion!r}; use a list of layers, or {' or '.join(CRITERIA)}"
        )
    if num_layers is None:
        raise ValueError(f"layers: {criterion} needs num_layers, the number of layers to keep")
    if calibration is None:
        raise ValueError(f"layers: {criterion} is measured on texts: set dataset and tokenizer")
    depths = {name: stack.depth for name, stack in model.facts.stacks.items()}
    counts = _by_stack(num_layers, depths, "num_layers")
    left_out = {name: depths[name] - _fitting(n, depths[name]) for name, n in counts.items()}
    left_out = {name: n for name, n in left_out.items() if n > 0}
    load(model, model.layout.read(Path(teacher_dir), None), device)
    model.module.eval()
    scores = block_scores(model, calibration, criterion, left_out)
    kept = {
        name: kept_blocks(scores[name], criterion, counts[name], depths[name]) for name in left_out
    }
    return Choice(_all_stacks(kept, depths), criterion, scores)


def _by_stack(given: Any, depths: Mapping[str, int], key: str) -> dict[str, Any]:
    if isinstance(given, Mapping):
        if not given:
            raise ValueError(f"{key} names no stack; the teacher has {', '.join(depths)}")
        for name in given:
            if name not in depths:
                raise ValueError(
                    f"{key}: the teacher has no stack {name!r}; it has {', '.join(depths)}"
                )
        return dict(given)
    if len(depths) > 1:
        example = ", ".join(f"{name}: ..." for name in depths)
        raise ValueError(f"{key} must say it for each stack: {{{example}}}")
    return {next(iter(depths)): given}


def _all_stacks(chosen: Mapping[str, list[int]], depths: Mapping[str, int]) -> dict[str, list[int]]:
    """A stack that nobody names keeps all its blocks."""
    return {name: chosen.get(name, list(range(depth))) for name, depth in depths.items()}


def _fitting(num_layers: Any, depth: int) -> int:
    if not isinstance(num_layers, int) or isinstance(num_layers, bool):
        raise ValueError(f"num_layers is {num_layers!r}; it must be a whole number")
    if not 1 <= num_layers <= depth:
        raise ValueError(f"num_layers is {num_layers}; the teacher has {depth} layers")
    return num_layers


def _listed(layers: Any, depth: int) -> list[int]:
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise ValueError(f"layers is {layers!r}; it must be a list of the teacher's layers")
    if not layers:
        raise ValueError("layers is empty; name at least one layer of the teacher")
    for layer in layers:
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise ValueError(f"layers: {layer!r} is no layer; they are whole numbers from 0")
    for layer in layers:
        if not -depth <= layer < depth:
            raise ValueError(
                f"layers: there is no layer {layer}; the teacher's are 0 to "
                f"{depth - 1} (or -{depth} to -1)"
            )
    chosen = [layer % depth for layer in layers]
    for layer in chosen:
        if chosen.count(layer) > 1:
            raise ValueError(f"layers: layer {layer} is named more than once")
    return chosen


def renumbered(
    tensors: Mapping[str, Tensor], model: TransformersModel, blocks: Mapping[str, list[int]]
) -> dict[str, Tensor]:
    """A teacher's tensors, under its files' names, with these blocks alone and in this order.

    What block 0 has and no other, such as T5's relative positions, stays with the first block.
    """
    base = f"{model.module.base_model_prefix}."
    renamed = dict(tensors)
    for stack, path in model.stack_paths.items():
        inner = re.escape(path.removeprefix(base))
        pattern = re.compile(rf"^((?:{re.escape(base)})?{inner}\.)(\d+)\.(.+)$")
        renamed = _renumbered(renamed, pattern, blocks[stack])
    return renamed


def _renumbered(
    tensors: Mapping[str, Tensor], pattern: re.Pattern[str], blocks: list[int]
) -> dict[str, Tensor]:
    found = {name: match for name in tensors if (match := pattern.match(name))}
    elsewhere = {match[3] for match in found.values() if match[2] != "0"}
    renamed = {}
    for name, tensor in tensors.items():
        match = found.get(name)
        if match is None or (match[2] == "0" and elsewhere and match[3] not in elsewhere):
            renamed[name] = tensor
        elif int(match[2]) in blocks:
            renamed[f"{match[1]}{blocks.index(int(match[2]))}.{match[3]}"] = tensor
    return renamed
