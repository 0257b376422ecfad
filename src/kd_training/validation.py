"""The objective's value on held-out data."""

import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from kd_data.workers import batches
from kd_training.far_teacher import fetched
from kd_training.objective.objective import Objective
from kd_training.placement.one_device import Placement

_OF_A_SAMPLE = ("tokens", "labels", "teacher_tokens", "teacher_labels")


class Validator:
    """Means of each term over a whole dataset, counted once per position as in training.

    Args:
        objective: The run's objective.
        loader: Micro-batches of the held-out dataset, equally many on every rank.
        placement: Where the models live.
        measured_by: What the total depends on besides the samples and the student, in words.

    Attributes:
        further: What else is measured of the student, in eval mode.
        judged_by: Name of the value that the best student has the lowest of.
    """

    def __init__(
        self, objective: Objective, loader: DataLoader, placement: Placement, measured_by: str
    ) -> None:
        self._objective, self._loader, self._placement = objective, loader, placement
        self._measured_by = measured_by
        self.further: Callable[[], dict[str, float]] = dict
        self.judged_by = "total"
        # Weights that change in training would make one validation's total mean another thing.
        self._weights = objective.weights

    @torch.no_grad()
    def run(self, student: nn.Module) -> dict[str, float]:
        """The weighted total and its parts, with the student in eval mode."""
        was_training, weights = student.training, self._objective.weights
        student.eval()
        self._objective.weights = self._weights
        sums, counts = [], []
        teacher = self._objective.teacher
        bar: Any = tqdm(
            fetched(batches(self._loader), teacher, self._placement),
            desc="validate",
            total=len(self._loader),
            leave=False,
            dynamic_ncols=True,
            disable=self._placement.rank != 0,
        )
        for batch in bar:
            counts.append(self._objective.counts(batch))
            on_device = batch.to(self._placement.device)
            sums.append(self._objective(on_device, torch.ones_like(counts[-1])))
        further = self.further()
        student.train(was_training)
        total_counts = self._placement.sum(torch.stack(counts).sum(0))
        values = self._objective.means(sums, total_counts, self._placement.sum)
        self._objective.weights = weights
        return values | further

    @property
    def dataset(self) -> Any:
        """The held-out samples, those of all ranks."""
        loader: Any = self._loader
        return loader.dataset.whole

    def measure(self) -> str:
        """A hash of what students are compared by: totals with the same one can be compared.

        Of the held-out data it is the samples that count, as tokens and in any order, not where
        they come from. It is the same for any number of ranks.
        """
        dataset: Any = self._loader.dataset
        total = count = 0
        for i in range(len(dataset)):
            sample = dataset[i]
            if "blank" not in sample:
                total, count = total + _checksum(sample), count + 1
        samples = self._placement.sum(torch.tensor([total, count])).tolist()
        measured_by = [samples, self._measured_by]
        if self.judged_by != "total":
            measured_by.append(self.judged_by)
        return hashlib.sha256(json.dumps(measured_by).encode()).hexdigest()


def _checksum(sample: dict[str, Any]) -> int:
    checksum = 0
    for name in _OF_A_SAMPLE:
        if name in sample:
            checksum = zlib.crc32(np.asarray(sample[name], np.int64).tobytes(), checksum)
    return checksum
