"""Which rank sees which sample: for any number of samples, ranks, batch size and accumulation."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_data import collate
from kd_data.sources import build_loader, build_val_loader, first_batch, grouped, skip_to

IGNORE, PAD = -100, 10_000
TO_BATCH = partial(collate, pad_id=PAD, ignore_index=IGNORE)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Rank:
    """As much of a placement as data needs."""

    rank: int
    world_size: int


@dataclass(frozen=True)
class Setup:
    """How many samples there are, and how they are shared."""

    num_samples: int
    ranks: int
    batch_size: int
    accumulation: int
    order: str = "shuffled"

    @property
    def global_batch(self):
        return self.ranks * self.batch_size * self.accumulation

    def loaders(self, num_workers=0):
        options = {"num_workers": num_workers, "num_ahead": self.accumulation}
        options |= {"batch_size": self.batch_size, "shuffle": self.order != "fixed", "seed": 3}
        samples = numbered(self.num_samples)
        if self.order == "grouped":
            options["lengths"] = torch.tensor([i * 7 % 23 for i in range(self.num_samples)])
            options["group_size"] = self.global_batch
        return [
            build_loader(samples, Rank(rank, self.ranks), TO_BATCH, **options)
            for rank in range(self.ranks)
        ]

    def steps(self, loaders, epoch, done=0):
        """The sorted samples of each optimizer step, over all ranks; ``done`` steps are skipped."""
        shares = []
        for loader in loaders:
            skip_to(loader, epoch, done * self.batch_size * self.accumulation)
            groups = grouped(loader, self.accumulation)
            shares.append([[n for batch in group for n in numbers(batch)] for group in groups])
        assert len({len(share) for share in shares}) == 1, "a rank would wait for the others"
        return [sorted(n for part in step for n in part) for step in zip(*shares, strict=True)]


def numbered(num_samples):
    """Samples of two tokens whose first is their number."""
    return [{"tokens": [i, 1], "labels": [i, 1]} for i in range(num_samples)]


def numbers(batch):
    return batch["tokens"][:, 0].tolist()


def setups(max_samples=60):
    few = st.integers(1, 4)
    orders = st.sampled_from(["fixed", "shuffled", "grouped"])
    return st.builds(Setup, st.integers(1, max_samples), few, few, few, orders)


@settings(max_examples=60)
@given(setups(), st.integers(0, 3))
def test_a_sample_is_seen_once_an_epoch_or_belongs_to_the_incomplete_last_step(setup, epoch):
    loaders = setup.loaders()
    steps = setup.steps(loaders, epoch)
    seen = [n for step in steps for n in step]
    assert len(seen) == len(set(seen))
    assert all(len(step) == setup.global_batch for step in steps)
    assert len(steps) == setup.num_samples // setup.global_batch
    assert {len(loader) // setup.accumulation for loader in loaders} == {len(steps)}


@settings(max_examples=60)
@given(setups(), st.integers(0, 3), st.integers(0, 10))
def test_going_on_in_the_middle_gives_the_rest_of_the_epoch(setup, epoch, done):
    whole = setup.steps(setup.loaders(), epoch)
    assert setup.steps(setup.loaders(), epoch, min(done, len(whole))) == whole[done:]


@pytest.mark.parametrize("order", ["fixed", "shuffled", "grouped"])
def test_workers_change_neither_the_order_nor_where_a_run_goes_on(order):
    setup = Setup(50, 2, 2, 3, order)
    loaders = [setup.loaders(num_workers) for num_workers in range(3)]
    for epoch in range(2):
        whole = setup.steps(loaders[0], epoch)
        assert all(setup.steps(some, epoch) == whole for some in loaders)
        assert all(setup.steps(some, epoch, done=2) == whole[2:] for some in loaders)


@settings(max_examples=60)
@given(setups(), st.integers(0, 3))
def test_a_step_has_the_same_samples_on_any_number_of_ranks(setup, epoch):
    alone = Setup(setup.num_samples, 1, setup.global_batch, 1, setup.order)
    assert setup.steps(setup.loaders(), epoch) == alone.steps(alone.loaders(), epoch)


@settings(max_examples=40)
@given(setups(), st.integers(0, 3))
def test_an_epoch_that_was_left_early_does_not_change_the_next(setup, left_after):
    used = setup.loaders()
    for loader in used:
        if len(loader):
            first_batch(loader, CPU)
        skip_to(loader, 0, 0)
        for _ in zip(range(left_after), grouped(loader, setup.accumulation), strict=False):
            pass
    assert setup.steps(used, 1) == setup.steps(setup.loaders(), 1)


@pytest.mark.parametrize("order", ["shuffled", "grouped"])
def test_epochs_differ_and_a_seed_repeats_them(order):
    setup = Setup(40, 2, 2, 2, order)
    first = setup.steps(setup.loaders(), 0)
    assert first == setup.steps(setup.loaders(), 0)
    assert first != setup.steps(setup.loaders(), 1)


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 5))
def test_validation_sees_every_sample_exactly_once(num_samples, ranks, batch_size):
    samples, seen, lengths = numbered(num_samples), [], set()
    for rank in range(ranks):
        loader = build_val_loader(samples, Rank(rank, ranks), TO_BATCH, batch_size)
        lengths.add(len(loader))
        for batch in loader:
            counted = (batch["labels"] != IGNORE).any(1)
            assert torch.equal(counted, batch["valid"].any(1)), "blank samples count nowhere"
            seen += batch["tokens"][counted, 0].tolist()
    assert sorted(seen) == list(range(num_samples))
    assert len(lengths) == 1, "a rank would wait for the others"
