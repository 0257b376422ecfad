"""The objective's value on held-out data."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from kd_training.objective import Objective
from kd_training.placement import Placement


class Validator:
    """Means of each part over a whole dataset, counted once per position as in training.

    Args:
        objective: The run's objective.
        loader: Micro-batches of the held-out dataset, equally many on every rank.
        placement: Where the models live.
    """

    def __init__(self, objective: Objective, loader: DataLoader, placement: Placement) -> None:
        self._objective, self._loader, self._placement = objective, loader, placement
        # Weights that change in training would make one validation's total mean another thing.
        self._weights = objective.weights

    @torch.no_grad()
    def run(self, student: nn.Module) -> dict[str, float]:
        """The weighted total and its parts, with the student in eval mode."""
        was_training, weights = student.training, self._objective.weights
        student.eval()
        self._objective.weights = self._weights
        sums, counts = [], []
        bar: Any = tqdm(
            self._loader,
            desc="validate",
            leave=False,
            dynamic_ncols=True,
            disable=self._placement.rank != 0,
        )
        for batch in bar:
            batch = {k: v.to(self._placement.device) for k, v in batch.items()}
            counts.append(self._objective.counts(batch))
            sums.append(self._objective(batch, torch.ones_like(counts[-1])))
        student.train(was_training)
        total_counts = self._placement.sum(torch.stack(counts).sum(0))
        values = self._objective.means(sums, total_counts, self._placement.sum)
        self._objective.weights = weights
        return values
