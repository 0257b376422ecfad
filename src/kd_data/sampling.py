"""Samples of similar length in one optimizer step, so that little of a batch is padding."""

from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import Dataset
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler
from tqdm import tqdm

from kd_config.dataset_nodes import is_packed
from kd_data.ranks import Ranks


def check_grouping(cfg: DictConfig) -> None:
    """Check that ``group_by_length`` goes together with the order and the data.

    Raises:
        ValueError: If the order is fixed, or every row is as long as the others anyway.
    """
    if not cfg.group_by_length:
        return
    if not cfg.shuffle:
        raise ValueError(
            "config: group_by_length draws the order of the samples, so shuffle must be true"
        )
    if is_packed(cfg.dataset):
        raise ValueError(
            "config: group_by_length: dataset is packed, so all of its rows have one length; "
            "leave out one of the two"
        )


def sample_lengths(dataset: Any, ranks: Ranks) -> Tensor:
    """Number of tokens of each sample, [len(dataset)] int64; each rank tokenises its share."""
    num_ranks = ranks.world_size
    share = tqdm(
        range(ranks.rank, len(dataset), num_ranks),
        desc="lengths",
        leave=False,
        delay=2,  # seconds: a small dataset needs no bar
        dynamic_ncols=True,
        disable=ranks.rank != 0,
    )
    own = [len(dataset[i]["tokens"]) for i in share]
    lengths = torch.empty(len(dataset), dtype=torch.int64)
    for rank, part in enumerate(ranks.gather(own)):
        lengths[rank::num_ranks] = torch.tensor(part, dtype=torch.int64)
    return lengths


def grouped_order(lengths: Tensor, group_size: int, generator: torch.Generator) -> Tensor:
    """A random order in which each ``group_size`` samples in a row have similar lengths.

    What does not fill a group is left out, at random. The others are shuffled and cut into
    stretches of up to 50 groups (fewer for small datasets, so that there are four at least), each
    is sorted, the longest first, and cut into groups, and the groups are shuffled. The one with
    the longest sample comes first: what does not fit into memory fails in the first step.

    Args:
        lengths: Length of each sample, [N].
        group_size: Samples of a group.
        generator: What the order is drawn with.

    Returns:
        Indices of samples, [N // group_size * group_size].
    """
    # Imported here, because few runs need it.
    from transformers.trainer_pt_utils import get_length_grouped_indices

    num_groups = len(lengths) // group_size
    kept = torch.randperm(len(lengths), generator=generator)[: num_groups * group_size]
    if num_groups == 0:
        return kept
    order = get_length_grouped_indices(lengths[kept].tolist(), group_size, generator=generator)
    groups = kept[order].view(num_groups, group_size)
    others = 1 + torch.randperm(num_groups - 1, generator=generator)
    return torch.cat([groups[:1], groups[others]]).flatten()


class LengthGroupedSampler(StatefulDistributedSampler):
    """A rank's share of `grouped_order`: the groups are those of all ranks together.

    Ranks take turns, so at each micro-batch all of them have samples of similar length, and a
    group has the same samples on any number of ranks. Seed and epoch fix the order.

    Args:
        dataset: The samples.
        lengths: Their lengths, [N]; the same on every rank.
        group_size: Samples of one optimizer step on all ranks, a multiple of ``num_replicas``.
        num_replicas: Number of ranks.
        rank: This one.
        seed: Of the order.
    """

    next_yielded: int | None  # how many to leave out at the next pass

    def __init__(
        self,
        dataset: Dataset,
        lengths: Tensor,
        group_size: int,
        num_replicas: int,
        rank: int,
        seed: int,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed, drop_last=True)
        self._lengths, self._group_size = lengths, group_size
        self.total_size = len(lengths) // group_size * group_size
        self.num_samples = self.total_size // num_replicas

    def __iter__(self) -> Iterator[int]:
        self.yielded = self.next_yielded or 0
        self.next_yielded = None
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = grouped_order(self._lengths, self._group_size, generator)
        for index in order[self.rank :: self.num_replicas][self.yielded :].tolist():
            self.yielded += 1
            yield index
