"""Which rank sees which sample: for any number of samples, ranks, batch size and accumulation."""

from dataclasses import dataclass
from functools import partial
from itertools import islice

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kd_data import collate
from kd_data.loaders import Batching, train_source, val_loader

IGNORE, PAD = -100, 10_000
TO_BATCH = partial(collate, pad_id=PAD, ignore_index=IGNORE)


@dataclass(frozen=True)
class Rank:
    """As much of a placement as data needs. Each of them knows the samples' lengths by heart."""

    rank: int
    world_size: int
    samples: tuple = ()

    def gather(self, value):
        num_ranks = self.world_size
        return [[len(s["tokens"]) for s in self.samples[r::num_ranks]] for r in range(num_ranks)]


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

    def sources(self, num_workers=0, max_steps=None):
        """One for each rank."""
        batching = Batching(
            self.batch_size,
            self.accumulation,
            shuffle=self.order != "fixed",
            seed=3,
            group_by_length=self.order == "grouped",
            max_steps=max_steps,
            num_workers=num_workers,
        )
        samples = numbered(self.num_samples)
        ranks = [Rank(rank, self.ranks, tuple(samples)) for rank in range(self.ranks)]
        return [train_source(samples, batching, rank, TO_BATCH, IGNORE) for rank in ranks]


def steps_of(sources, epoch, first=0):
    """The sorted samples of each optimizer step, over all ranks."""
    shares = [list(source.steps(epoch, first)) for source in sources]
    assert len({len(share) for share in shares}) == 1, "a rank would wait for the others"
    return [sorted(n for part in step for n in numbers(part)) for step in zip(*shares, strict=True)]


def numbered(num_samples):
    """Samples of several lengths whose first token is their number."""
    sizes = (2 + i * 7 % 5 for i in range(num_samples))
    return [{"tokens": [i, *[1] * n], "labels": [i, *[1] * n]} for i, n in enumerate(sizes)]


def numbers(batches):
    return [n for batch in batches for n in batch.inputs["tokens"][:, 0].tolist()]


def setups(max_samples=60):
    few = st.integers(1, 4)
    orders = st.sampled_from(["fixed", "shuffled", "grouped"])
    found = st.builds(Setup, st.integers(1, max_samples), few, few, few, orders)
    return found.filter(lambda setup: setup.num_samples >= setup.global_batch)


@settings(max_examples=60)
@given(setups(), st.integers(0, 3))
def test_a_sample_is_seen_once_an_epoch_or_belongs_to_the_incomplete_last_step(setup, epoch):
    sources = setup.sources()
    steps = steps_of(sources, epoch)
    seen = [n for step in steps for n in step]
    assert len(seen) == len(set(seen))
    assert all(len(step) == setup.global_batch for step in steps)
    assert len(steps) == setup.num_samples // setup.global_batch
    assert {source.steps_per_epoch for source in sources} == {len(steps)}


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_less_than_one_step_is_refused(num_samples, ranks, batch_size, accumulation):
    setup = Setup(num_samples, ranks, batch_size, accumulation)
    assume(num_samples < setup.global_batch)
    sizes = f"{batch_size} x {accumulation} x {ranks}"
    with pytest.raises(ValueError, match=rf"^dataset: {num_samples} samples do not .* = {sizes}$"):
        setup.sources()


@settings(max_examples=60)
@given(setups(), st.integers(0, 3), st.integers(0, 10))
def test_going_on_in_the_middle_gives_the_rest_of_the_epoch(setup, epoch, done):
    whole = steps_of(setup.sources(), epoch)
    assert steps_of(setup.sources(), epoch, min(done, len(whole))) == whole[done:]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("order", ["fixed", "shuffled", "grouped"])
def test_a_run_goes_on_batch_by_batch_on_each_rank(ranks, order):
    """Not only with the same samples: the very batches, in the middle of the second epoch."""
    setup = Setup(50, ranks, 2, 2, order)
    for before, after in zip(setup.sources(), setup.sources(), strict=True):
        list(before.steps(0))
        whole = list(before.steps(1))
        after.check_same(before.facts())
        rest = list(after.steps(1, first=3))
        assert len(rest) == len(whole) - 3 > 1
        for ours, theirs in zip(rest, whole[3:], strict=True):
            for one, other in zip(ours, theirs, strict=True):
                named, expected = one.tensors(), other.tensors()
                assert {k: v.tolist() for k, v in named.items()} == {
                    k: v.tolist() for k, v in expected.items()
                }


def test_max_steps_shorten_every_epoch():
    setup = Setup(50, 2, 2, 3)
    whole = steps_of(setup.sources(), 1)
    assert steps_of(setup.sources(max_steps=2), 1) == whole[:2]
    assert steps_of(setup.sources(max_steps=2), 1, first=1) == whole[1:2]
    assert steps_of(setup.sources(max_steps=100), 1) == whole


@pytest.mark.parametrize("order", ["fixed", "shuffled", "grouped"])
def test_workers_change_neither_the_order_nor_where_a_run_goes_on(order):
    setup = Setup(50, 2, 2, 3, order)
    sources = [setup.sources(num_workers) for num_workers in range(3)]
    for epoch in range(2):
        whole = steps_of(sources[0], epoch)
        assert all(steps_of(some, epoch) == whole for some in sources)
        assert all(steps_of(some, epoch, first=2) == whole[2:] for some in sources)


@settings(max_examples=60)
@given(setups(), st.integers(0, 3))
def test_a_step_has_the_same_samples_on_any_number_of_ranks(setup, epoch):
    alone = Setup(setup.num_samples, 1, setup.global_batch, 1, setup.order)
    assert steps_of(setup.sources(), epoch) == steps_of(alone.sources(), epoch)


@settings(max_examples=40)
@given(setups(), st.integers(0, 3))
def test_an_epoch_that_was_left_early_does_not_change_the_next(setup, left_after):
    used = setup.sources()
    for source in used:
        source.first_batch()
        list(islice(source.steps(0), left_after))
    assert steps_of(used, 1) == steps_of(setup.sources(), 1)


@pytest.mark.parametrize("order", ["shuffled", "grouped"])
def test_epochs_differ_and_a_seed_repeats_them(order):
    setup = Setup(40, 2, 2, 2, order)
    first = steps_of(setup.sources(), 0)
    assert first == steps_of(setup.sources(), 0)
    assert first != steps_of(setup.sources(), 1)


def test_the_first_batch_is_the_datasets_beginning_on_every_rank():
    for source in Setup(20, 2, 3, 1).sources():
        assert numbers([source.first_batch()]) == [0, 1, 2]


CHANGES = {
    "samples": Setup(31, 2, 2, 2),
    "samples per step": Setup(30, 2, 2, 3),
    "seed of the shuffled order": Setup(30, 2, 2, 2, "fixed"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_does_not_go_on_with_other_data(name):
    (before, _), (after, _) = Setup(30, 2, 2, 2).sources(), CHANGES[name].sources()
    was, now = before.facts()[name], after.facts()[name]
    message = rf"^resume_from_checkpoint: dataset: {name}: was {was}, now {now}; keep dataset, seed"
    with pytest.raises(ValueError, match=message):
        after.check_same(before.facts())
    # As many samples in a step, on another number of ranks.
    Setup(30, 1, 4, 2).sources()[0].check_same(before.facts())


def test_the_plan_counts_tokens():
    (source,) = Setup(40, 1, 2, 4).sources()  # lengths of 3 to 7, so a mean of 5
    assert source.describe(epochs=3) == ["15 steps of 8 samples, about 6e+02 tokens"]


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 5))
def test_validation_sees_every_sample_exactly_once(num_samples, ranks, batch_size):
    samples, seen, lengths = numbered(num_samples), [], set()
    for rank in range(ranks):
        loader = val_loader(samples, batch_size, Rank(rank, ranks), TO_BATCH)
        lengths.add(len(loader))
        for batch in loader:
            counted = (batch.labels != IGNORE).any(1)
            for scope in ("labels", "all"):
                in_scope = batch.scopes[scope]["logits"].any(1)
                assert in_scope.equal(counted), "blank samples count nowhere"
            assert len(batch.sample_keys) == counted.sum(), "and are no document"
            seen += batch.inputs["tokens"][counted, 0].tolist()
    assert sorted(seen) == list(range(num_samples))
    assert len(lengths) == 1, "a rank would wait for the others"
