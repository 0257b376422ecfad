"""Which blocks a model can do without: measured on texts that pass through them.

Shapes: B batch, S positions, D width.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from hf_models.model import Model

BLOCK_INFLUENCE, ANGULAR_DISTANCE = "block_influence", "angular_distance"
CRITERIA = (BLOCK_INFLUENCE, ANGULAR_DISTANCE)


class Calibration(NamedTuple):
    """A batch of texts.

    Attributes:
        inputs: The model's own keyword arguments.
        masks: Stack → [B, S], the positions that count.
    """

    inputs: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]


@torch.no_grad()
def block_scores(
    model: Model, batches: Iterable[Calibration], criterion: str, runs: Mapping[str, int]
) -> dict[str, list[float]]:
    """What is lost by leaving out blocks, for each stack that ``runs`` names.

    ``block_influence`` of block i is ``1 − cos(x_i, y_i)`` of its input and output (Men et al.,
    "ShortGPT", 2025). ``angular_distance`` of the run of n blocks that begins with block i is
    ``arccos(cos(x_i, y_{i+n−1})) / π`` (Gromov et al., "The Unreasonable Ineffectiveness of the
    Deeper Layers", 2025). Both are means over all positions that count.

    Args:
        model: With its weights, in eval mode.
        batches: The texts.
        criterion: One of the two.
        runs: Stack → n, the number of blocks to leave out.

    Returns:
        Stack → the score of each block, or of each run by its first block.

    Raises:
        ValueError: If there is no text.
    """
    lengths = dict.fromkeys(runs, 1) if criterion == BLOCK_INFLUENCE else runs
    stacks = model.stacks()
    meters = {name: _Meter(len(stacks[name]), n, criterion) for name, n in lengths.items()}
    with ExitStack() as hooks:
        for name, meter in meters.items():
            for number, block in enumerate(stacks[name]):
                hook = partial(meter.take, number)
                hooks.callback(block.register_forward_hook(hook, with_kwargs=True).remove)
        device = next(model.module.parameters()).device
        for batch in tqdm(batches, desc="calibrate", leave=False, dynamic_ncols=True):
            for name, meter in meters.items():
                meter.mask = batch.masks[name].to(device)
            model.view({name: tensor.to(device) for name, tensor in batch.inputs.items()})
    if not all(meter.count for meter in meters.values()):
        raise ValueError("calibration: there is no text to measure the blocks on")
    return {name: (meter.sums / meter.count).tolist() for name, meter in meters.items()}


class _Meter:
    """Sums the scores of one stack's blocks."""

    def __init__(self, depth: int, run: int, criterion: str) -> None:
        self._run, self._criterion = run, criterion
        self._inputs: dict[int, Tensor] = {}
        self.sums = torch.zeros(depth - run + 1, dtype=torch.float64)
        self.count = 0
        self.mask = torch.zeros(0)

    def take(self, number: int, _: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Take in one block's input and output."""
        given = args[0] if args else kwargs["hidden_states"]
        self._inputs[number] = given[self.mask].float()
        first = number - self._run + 1
        if first < 0:
            return
        left = (output[0] if isinstance(output, tuple) else output)[self.mask].float()
        cosine = F.cosine_similarity(self._inputs.pop(first), left, dim=-1).clamp(-1, 1)
        angle = self._criterion == ANGULAR_DISTANCE
        score = torch.arccos(cosine) / math.pi if angle else 1 - cosine
        self.sums[first] += score.double().sum().cpu()
        if first == 0:
            self.count += int(self.mask.sum())


def kept_blocks(scores: list[float], criterion: str, keep: int, depth: int) -> list[int]:
    """The blocks that stay, in order: those of most influence, or all but the closest run."""
    if criterion == BLOCK_INFLUENCE:
        order = sorted(range(depth), key=lambda block: scores[block], reverse=True)
        return sorted(order[:keep])
    first = min(range(len(scores)), key=lambda start: scores[start])
    return [block for block in range(depth) if not first <= block < first + depth - keep]
