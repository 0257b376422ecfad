"""Samples of similar length share a batch: less padding, and nothing else is lost."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest
import torch
from processes import GUARD

from kd_data import collate
from kd_data.loaders import Batching, train_source
from kd_data.sampling import grouped_order, sample_lengths

LENGTHS = torch.randint(1, 200, (2000,), generator=torch.Generator().manual_seed(0))
SAMPLES = [{"tokens": [1] * n, "labels": [1] * n} for n in LENGTHS.tolist()]
BATCH_SIZE, ACCUMULATION = 4, 2


class Rank:
    """As much of a placement as data needs; the ranks are threads."""

    def __init__(self, rank, world_size, shares=None, barrier=None):
        self.rank, self.world_size, self._shares, self._barrier = rank, world_size, shares, barrier

    def gather(self, value):
        self._shares[self.rank] = value
        self._barrier.wait(GUARD)
        return self._shares


def on_threads(ranks, work):
    """What each rank returns of ``work(rank)``."""
    shares, barrier = [None] * ranks, Barrier(ranks)
    with ThreadPoolExecutor(ranks) as threads:
        return list(
            threads.map(lambda rank: work(Rank(rank, ranks, shares, barrier)), range(ranks))
        )


def source_of(rank, batching, samples=SAMPLES):
    return train_source(samples, batching, rank, partial(collate, pad_id=0), -100)


def steps(ranks, by_length, epoch=1):
    """The micro-batches of each optimizer step, by rank."""
    batching = Batching(BATCH_SIZE, ACCUMULATION, seed=5, group_by_length=by_length)
    shares = on_threads(ranks, lambda rank: list(source_of(rank, batching).steps(epoch)))
    return list(zip(*shares, strict=True))


def padding(ranks, by_length):
    """The share of all positions that are padding."""
    valid = [
        batch.scopes["all"]["logits"]
        for step in steps(ranks, by_length)
        for share in step
        for batch in share
    ]
    return 1 - sum(v.sum().item() for v in valid) / sum(v.numel() for v in valid)


def wait_of_the_ranks(by_length):
    """How much more the ranks' widest batches have than the others, mean over micro-batches."""
    widths = torch.tensor(
        [
            [share[i].labels.shape[1] for share in step]
            for step in steps(4, by_length)
            for i in range(ACCUMULATION)
        ]
    ).float()
    return (widths.amax(1) / widths.mean(1) - 1).mean().item()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_little_is_padding(ranks):
    without, with_groups = padding(ranks, False), padding(ranks, True)
    print(f"{ranks} ranks: {without:.1%} padding, {with_groups:.1%} grouped")
    # Four lengths drawn evenly from 0 to L: their mean is L/2, their greatest 4L/5.
    assert without == pytest.approx(3 / 8, abs=0.03)
    assert with_groups < 0.06


def test_ranks_work_on_similar_lengths_at_the_same_time():
    assert wait_of_the_ranks(False) > 0.1
    assert wait_of_the_ranks(True) < 0.02


def order(epoch, lengths=LENGTHS, group_size=8):
    return grouped_order(lengths, group_size, torch.Generator().manual_seed(epoch))


def test_the_longest_sample_is_in_the_first_group():
    for epoch in range(5):
        kept = order(epoch)
        assert LENGTHS[kept[:8]].max() == LENGTHS[kept].max()


def test_the_order_of_lengths_is_random():
    """Neither do batches get longer or shorter, nor do samples always meet the same others."""
    means = LENGTHS[order(0)].view(-1, 8).float().mean(1)
    assert abs(torch.corrcoef(torch.stack([means, torch.arange(len(means)).float()]))[0, 1]) < 0.2
    met = [{frozenset(g) for g in order(epoch).view(-1, 8).tolist()} for epoch in range(2)]
    assert len(met[0] & met[1]) == 0


def test_no_sample_is_left_out_more_often_than_others():
    lengths = torch.arange(10)
    left_out = torch.zeros(10)
    for epoch in range(400):
        left_out += 1
        left_out[order(epoch, lengths, 4)] -= 1
    # Two of ten each time; a share of 0.2 over 400 draws has a deviation of 0.02.
    assert ((left_out / 400 - 0.2).abs() < 0.06).all()


def test_fewer_samples_than_a_group():
    assert order(0, torch.arange(3), 4).tolist() == []


@pytest.mark.parametrize(("num_samples", "ranks"), [(1, 1), (7, 1), (7, 2), (8, 4), (3, 4)])
def test_each_rank_counts_a_share_of_the_tokens(num_samples, ranks):
    read = []

    class Read:
        def __len__(self):
            return num_samples

        def __getitem__(self, index):
            read.append(index)
            return SAMPLES[index]

    found = on_threads(ranks, lambda rank: sample_lengths(Read(), rank))
    assert all(lengths.tolist() == LENGTHS[:num_samples].tolist() for lengths in found)
    assert sorted(read) == list(range(num_samples))


def test_a_checkpoint_knows_the_lengths():
    """The order depends on them: with others, samples would be seen twice or never."""
    cut = [{key: ids[:20] for key, ids in sample.items()} for sample in SAMPLES]
    plain, by_length, again, shorter = (
        source_of(Rank(0, 1, [None], Barrier(1)), Batching(4, group_by_length=grouped), samples)
        for grouped, samples in ((False, SAMPLES), (True, SAMPLES), (True, SAMPLES), (True, cut))
    )
    again.check_same(by_length.facts())
    for one, other in [(plain, by_length), (by_length, plain), (by_length, shorter)]:
        with pytest.raises(ValueError, match=r"lengths to group by: was .*keep .*group_by_length"):
            one.check_same(other.facts())
    before = {k: v for k, v in plain.facts().items() if k != "lengths to group by"}
    plain.check_same(before)
