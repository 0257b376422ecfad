"""Processes that read for a run: its signals pass them by, and its end is theirs."""

import multiprocessing
import os
import signal
import subprocess
from contextlib import closing

import pytest
from torch.utils.data import DataLoader, Dataset

from kd_data.workers import about_lost_worker, batches, worker_options

EVERYBODY = (signal.SIGTERM, signal.SIGINT)


class Numbers(Dataset):
    """0 … 19, each with the process that has read it.

    Args:
        signals: What reaches that process while it reads, as if a launcher had sent it to all.
        fails_at: Reading this one raises.
    """

    def __init__(self, signals=(), fails_at=None):
        self._signals, self._fails_at = signals, fails_at

    def __len__(self):
        return 20

    def __getitem__(self, index):
        for number in self._signals:
            os.kill(os.getpid(), number)
        if index == self._fails_at:
            raise ValueError(f"numbers: sample {index}: is broken")
        return index, os.getpid()


def loader_of(dataset, num_workers=2, num_ahead=1):
    options = worker_options(num_workers, num_ahead)
    return DataLoader(dataset, batch_size=2, collate_fn=list, **options)


def test_signals_to_the_whole_group_leave_them_alone():
    """As from Ctrl-C or a launcher; the run itself stops after its step, and needs them so long."""
    read = [sample for batch in batches(loader_of(Numbers(EVERYBODY))) for sample in batch]
    assert [number for number, _ in read] == list(range(20))
    assert len({process for _, process in read} - {os.getpid()}) == 2


def test_signals_during_their_start_do_so_too(monkeypatch):
    monkeypatch.setattr(multiprocessing.context.ForkProcess, "start", start_and_signal)
    assert len(list(batches(loader_of(Numbers())))) == 10


def start_and_signal(process, start=multiprocessing.context.ForkProcess.start):
    """Somebody else, not the run, signals a process that has only just begun."""
    start(process)
    for number in EVERYBODY:
        subprocess.run(["kill", f"-{int(number)}", str(process.pid)], check=True)


def test_they_end_with_their_pass_even_if_it_is_left_early():
    with closing(batches(loader_of(Numbers()))) as some:
        next(some)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()
    assert len(list(batches(loader_of(Numbers())))) == 10
    assert not multiprocessing.active_children()


def test_the_run_can_end_them_at_any_time():
    """As Python does it for a run that ends by an error: SIGTERM, then waiting without a limit."""
    with closing(batches(loader_of(Numbers()))) as some:
        next(some)
        children = multiprocessing.active_children()
        for child in children:
            child.terminate()
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0, 0]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_an_error_keeps_its_own_words(num_workers):
    passed = batches(loader_of(Numbers(fails_at=7), num_workers))
    assert [number for _ in range(3) for number, _ in next(passed)] == list(range(6))
    with pytest.raises(ValueError, match=r"^numbers: sample 7: is broken$"):
        next(passed)


def test_one_that_is_killed_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as error:
        list(batches(loader_of(Numbers((signal.SIGKILL,)))))
    words = about_lost_worker(error.value)
    assert words.startswith("num_workers: DataLoader worker")
    assert words.endswith("lower num_workers, or set it to 0")
    assert about_lost_worker(RuntimeError("mat1 and mat2")) is None


@pytest.mark.parametrize(("num_workers", "num_ahead"), [(1, 1), (2, 32), (5, 32)])
def test_they_read_a_whole_step_ahead(num_workers, num_ahead):
    options = worker_options(num_workers, num_ahead)
    assert options["prefetch_factor"] * num_workers >= num_ahead
