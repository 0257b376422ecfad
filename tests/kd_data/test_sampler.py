"""The order of the samples, against torch's own distributed sampler."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from kd_data.sampling import EpochSampler, by_length, in_order, shuffled


@dataclass(frozen=True)
class Rank:
    rank: int
    world_size: int


@given(
    st.integers(0, 70),
    st.integers(1, 5),
    st.integers(0, 2**31 - 1),
    st.integers(0, 4),
    st.integers(0, 20),
    st.booleans(),
)
def test_it_is_torchs_order_from_any_sample_on(num_samples, world_size, seed, epoch, first, mixed):
    order = shuffled(num_samples) if mixed else in_order(num_samples)
    for rank in range(world_size):
        if num_samples < world_size:
            expected = []  # torch's own counts a negative number of samples here
        else:
            torchs = DistributedSampler(
                range(num_samples), world_size, rank, shuffle=mixed, seed=seed, drop_last=True
            )
            torchs.set_epoch(epoch)
            expected = list(torchs)
        sampler = EpochSampler(order, seed, Rank(rank, world_size))
        sampler.start(epoch, first)
        assert list(sampler) == expected[first:]
        assert len(sampler) == len(expected)


@given(st.integers(0, 70), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_groups_of_lengths_are_shared_in_turns(num_samples, ranks, per_rank, epoch):
    lengths = torch.arange(num_samples) * 7 % 11
    order = by_length(lengths, ranks * per_rank)
    shares = []
    for rank in range(ranks):
        sampler = EpochSampler(order, 5, Rank(rank, ranks))
        sampler.start(epoch)
        shares.append(list(sampler))
    together = order(torch.Generator().manual_seed(5 + epoch)).tolist()
    assert [index for turn in zip(*shares, strict=True) for index in turn] == together


@pytest.mark.parametrize("order", [shuffled(20), by_length(torch.arange(20), 4)])
def test_drawing_an_order_leaves_the_runs_random_numbers_alone(order):
    before = torch.get_rng_state()
    list(EpochSampler(order, 1, Rank(0, 2)))
    assert torch.equal(torch.get_rng_state(), before)
