"""The objective's value on held-out data."""

import hashlib
import json
import zlib
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from kd_config.values import loss_weights
from kd_data.transfer import to_device
from kd_data.workers import batches
from kd_training.objective.objective import Objective
from kd_training.placement.one_device import Placement

# What a validation's total depends on, besides its samples, the parts' weights and the student.
_MEASURE = (
    "kd_loss",
    "prompt_kd_loss",
    "ir_loss",
    "layer_mapping",
    "layer_projection.mode",
    "token_scope",
    "teacher_model",
    "teacher_checkpointer",
    "teacher_quantization",
)
_OF_A_SAMPLE = ("tokens", "labels", "teacher_tokens", "teacher_labels")


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
            batches(self._loader),
            desc="validate",
            total=len(self._loader),
            leave=False,
            dynamic_ncols=True,
            disable=self._placement.rank != 0,
        )
        for batch in bar:
            counts.append(self._objective.counts(batch))
            on_device = to_device(batch, self._placement.device)
            sums.append(self._objective(on_device, torch.ones_like(counts[-1])))
        student.train(was_training)
        total_counts = self._placement.sum(torch.stack(counts).sum(0))
        values = self._objective.means(sums, total_counts, self._placement.sum)
        self._objective.weights = weights
        return values


def measure(cfg: DictConfig, loader: DataLoader, placement: Placement) -> str:
    """A hash of what the students are compared by: totals with the same one can be compared.

    Of the held-out data it is the samples that count, as tokens and in any order, not where they
    come from; of the teacher it is what the config says.

    Args:
        cfg: The run's config.
        loader: Of this rank's share of the held-out data.
        placement: Where the run lives; the hash is the same for any number of ranks.
    """
    dataset: Any = loader.dataset
    total = count = 0
    for i in range(len(dataset)):
        sample = dataset[i]
        if "blank" not in sample:
            total, count = total + _checksum(sample), count + 1
    samples = placement.sum(torch.tensor([total, count])).tolist()
    values: Any = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    parts = {key: OmegaConf.select(values, key) for key in _MEASURE}
    known = OmegaConf.create({"parts": parts, "weights": vars(loss_weights(cfg))})
    text = json.dumps([samples, OmegaConf.to_container(known)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(sample: dict[str, Any]) -> int:
    checksum = 0
    for name in _OF_A_SAMPLE:
        if name in sample:
            checksum = zlib.crc32(np.asarray(sample[name], np.int64).tobytes(), checksum)
    return checksum
