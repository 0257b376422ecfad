"""The order in which samples come: in turns over ranks, anew in each epoch, from anywhere in it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from tqdm import tqdm

from kd_data.ranks import Ranks

# Draws the order of an epoch: indices of samples, of which ranks take turns.
Order = Callable[[torch.Generator], Tensor]


class EpochSampler(Sampler[int]):
    """A rank's share of each epoch's order. Ranks see different samples, and equally many.

    Args:
        order: Draws the order of all ranks with a generator that seed and epoch start.
        seed: Of the order.
        ranks: The processes that share the samples.
    """

    def __init__(self, order: Order, seed: int, ranks: Ranks) -> None:
        self._order, self._seed = order, seed
        self._rank, self._num_ranks = ranks.rank, ranks.world_size
        self._epoch = self._first = 0

    def start(self, epoch: int, first: int = 0) -> None:
        """Make the next pass that of ``epoch``, without its ``first`` samples of this rank."""
        self._epoch, self._first = epoch, first

    def _share(self) -> Tensor:
        order = self._order(torch.Generator().manual_seed(self._seed + self._epoch))
        whole = len(order) // self._num_ranks * self._num_ranks
        return order[self._rank : whole : self._num_ranks]

    def __iter__(self) -> Iterator[int]:
        return iter(self._share()[self._first :].tolist())

    def __len__(self) -> int:
        return len(self._share())


def in_order(num_samples: int) -> Order:
    """Samples as they are."""
    return lambda _: torch.arange(num_samples)


def shuffled(num_samples: int) -> Order:
    """All samples at random."""
    return lambda generator: torch.randperm(num_samples, generator=generator)


def by_length(lengths: Tensor, group_size: int) -> Order:
    """See `grouped_order`; the groups are those of all ranks together.

    As ranks take turns, all of them have samples of similar length at each micro-batch, and a group
    has the same samples on any number of ranks.
    """
    return partial(grouped_order, lengths, group_size)


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
