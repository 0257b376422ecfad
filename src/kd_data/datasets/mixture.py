"""Several datasets in fixed proportions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Dataset
from torchtune.config import instantiate
from torchtune.datasets import PackedDataset
from torchtune.modules.transforms.tokenizers import ModelTokenizer

from kd_data.packing import pack


def mixture(
    tokenizer: ModelTokenizer,
    datasets: Sequence[Any],
    weights: Sequence[float],
    seed: int = 0,
    num_samples: int | None = None,
    packed: bool = False,
) -> "MixtureDataset | PackedDataset":
    """A weighted mixture of datasets. See ``MixtureDataset``.

    Args:
        tokenizer: torchtune tokenizer, handed to each dataset.
        datasets: Nodes of a ``_component_`` and its arguments, or datasets.
        weights: One for each, at least 0: its share of the samples, relative to their sum.
        seed: Of each dataset's order.
        num_samples: Length of the mixture; None: that of all datasets together.
        packed: Several samples to a row of ``tokenizer.max_seq_len`` tokens. The datasets
            themselves must not be packed.

    Raises:
        ValueError: If a dataset cannot be built, is empty or packed, or weights or length are
            unusable.
    """
    built = [_build(node, tokenizer, f"datasets[{i}]") for i, node in enumerate(datasets)]
    mixed = MixtureDataset(built, weights, seed, num_samples)
    return pack(mixed, tokenizer) if packed else mixed


class MixtureDataset(Dataset):
    """Samples of several datasets, interleaved in proportion to weights w that sum to 1.

    The k-th sample of dataset i is due at (k + ½) / w_i, and all are sorted by that: among the
    first m there are m·w_i of dataset i, give or take one or two, for every m. Each dataset is
    gone through in a random order without repeats, and in another one each time it is exhausted.

    Which sample an index stands for depends on lengths, weights and seed alone, so that index i is
    the same after a restart and on every rank.

    Raises:
        ValueError: See ``mixture``.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        weights: Sequence[float],
        seed: int = 0,
        num_samples: int | None = None,
    ) -> None:
        _check(datasets, weights, num_samples)
        self.datasets = list(datasets)
        lengths = [len(dataset) for dataset in datasets]
        num_samples = num_samples if num_samples is not None else sum(lengths)
        shares = np.array(weights, dtype=np.float64) / math.fsum(weights)
        self._sources = _interleave(shares, num_samples)
        self._indices = np.empty(num_samples, dtype=np.int64)
        for i, length in enumerate(lengths):
            own = self._sources == i
            self._indices[own] = _passes(length, int(own.sum()), (seed, i))

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def largest_label(self) -> int | None:
        """The largest class of all datasets that have classes."""
        found = (getattr(dataset, "largest_label", None) for dataset in self.datasets)
        return max((label for label in found if label is not None), default=None)

    def __getitem__(self, index: int) -> Any:
        source, number = self.origin(index)
        return self.datasets[source][number]

    def origin(self, index: int) -> tuple[int, int]:
        """The dataset that a sample is of, and its number there."""
        return int(self._sources[index]), int(self._indices[index])


def _build(node: Any, tokenizer: ModelTokenizer, where: str) -> Any:
    if not isinstance(node, Mapping):
        return node
    config = node if isinstance(node, DictConfig) else OmegaConf.create(dict(node))
    try:
        return instantiate(config, tokenizer)
    except Exception as error:  # any component may be named, so it may raise anything
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{where}: {why}") from error


def _check(datasets: Sequence[Any], weights: Sequence[float], num_samples: int | None) -> None:
    if not datasets or len(datasets) != len(weights):
        raise ValueError(f"a mixture of {len(datasets)} datasets has {len(weights)} weights")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        raise ValueError(f"weights are {list(weights)}; they must be at least 0, and one above 0")
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
    for i, dataset in enumerate(datasets):
        if isinstance(dataset, PackedDataset):
            raise ValueError(f"datasets[{i}] is packed; set packed for the mixture instead")
        if len(dataset) == 0:
            raise ValueError(f"datasets[{i}] is empty")


def _interleave(shares: np.ndarray, num_samples: int) -> np.ndarray:
    """Which dataset each sample comes from, [num_samples]."""
    # A few more than its share of each, as rounding may bring one of them forward.
    counts = [math.ceil(num_samples * share) + len(shares) if share else 0 for share in shares]
    due = [(np.arange(c) + 0.5) / s for c, s in zip(counts, shares, strict=True) if c]
    sources = np.repeat(np.arange(len(shares)), counts)
    return sources[np.argsort(np.concatenate(due), kind="stable")[:num_samples]]


def _passes(length: int, num_samples: int, seed: tuple[int, int]) -> np.ndarray:
    """Random orders of ``range(length)``, one after the other, [num_samples]."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(length) for _ in range(-(-num_samples // length))]
    return np.concatenate([*orders, np.empty(0, dtype=np.int64)])[:num_samples]
