"""What one rank does alone may take any time, and all ranks must mean the same folder.

No outcome depends on a clock: ranks tell one another through their store how far they are.
"""

import os
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import sharded_cases
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from ranks import on_ranks
from sharded_cases import case_config
from torch import nn
from torch.distributed.checkpoint.state_dict import set_model_state_dict
from torch.distributed.distributed_c10d import _get_default_store, _set_pg_timeout

from hf_models import HFCheckpointer
from hf_models.model import Merged
from kd_config.check import check_config, typed
from kd_training import run
from kd_training.build import build_student
from kd_training.many_devices import make_sharded
from kd_training.output import directory
from kd_training.output.student import Export, save_student
from kd_training.placement.one_device import read_weights
from kd_training.placement.sharded import Sharded


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranks")
    sharded_cases.make_models(root)
    return root


def let_know(event):
    """Tell the other rank that something has happened here."""
    _get_default_store().set(event, "")


def until(*events):
    """Return when one of these has happened on the other rank."""
    while not any(_get_default_store().check([event]) for event in events):
        time.sleep(0.001)


class Told(Sharded):
    """Lets the other rank know when this one waits."""

    def wait(self):
        let_know(f"rank {self.rank} waits")
        super().wait()

    def gather(self, value):
        let_know(f"rank {self.rank} waits")
        return super().gather(value)


def wait_for_a_slow_rank(rank):
    """Rank 0 stays away for longer than the limit of all other collectives."""
    placement, limit = Sharded("cpu"), timedelta(milliseconds=20)
    _set_pg_timeout(limit, dist.group.WORLD)
    meetings = {"wait": placement.wait, "gather": lambda: placement.gather(rank)}
    for name, meet in meetings.items():
        if rank == 1:
            let_know(name)
        else:
            until(name)
            time.sleep(10 * limit.total_seconds())
        meet()


def test_waiting_is_not_limited_as_other_collectives_are(tmp_path):
    on_ranks(2, str(tmp_path / "meeting"), wait_for_a_slow_rank)


def wait_for_a_rank_that_ends(rank):
    placement = Told("cpu")
    if rank == 0:
        until("rank 1 waits")
        os._exit(0)
    with pytest.raises(RuntimeError, match=r"[Cc]onnection"):
        placement.wait()
    os._exit(0)  # the group cannot be left in order any more


def test_a_rank_that_ends_is_noticed_at_once(tmp_path):
    on_ranks(2, str(tmp_path / "meeting"), wait_for_a_rank_that_ends)


class SlowCheckpointer:
    """Has written when the other rank waits for it, or has gone on without."""

    def __init__(self, file):
        self.file = file

    def save_checkpoint(self, *_, **__):
        until("rank 1 waits", "rank 1 goes on")
        self.file.touch()


def save_while_the_other_waits(rank, file):
    checkpointer, placement = SlowCheckpointer(file), Told("cpu")
    export = Export(checkpointer, torch.float32, epochs=1, adapter_only=False, card=None)
    student = SimpleNamespace(module=nn.Linear(1, 1), merged=lambda _: Merged({}, None, None))
    save_student(export, student, placement, epoch=0, best=False)
    written = file.exists()
    let_know(f"rank {rank} goes on")
    assert written


def test_nobody_goes_on_before_a_student_is_written(tmp_path):
    on_ranks(2, str(tmp_path / "meeting"), save_while_the_other_waits, tmp_path / "written")


def load_while_the_other_waits(rank, root, file):
    cfg = check_config(case_config(root, "lora", 2))
    student, placement = build_student(typed(cfg), torch.float32), Told("cpu")

    def read(checkpointer):
        until("rank 1 waits", "rank 1 goes on")
        weights = read_weights(checkpointer)
        file.touch()
        return weights

    def set_weights(*args, **kwargs):
        have_been_read = file.exists()
        let_know(f"rank {rank} goes on")
        assert have_been_read
        return set_model_state_dict(*args, **kwargs)

    with (
        mock.patch("kd_training.placement.sharded.read_weights", read),
        mock.patch("kd_training.placement.sharded.set_model_state_dict", set_weights),
    ):
        placement.place(student, HFCheckpointer(cfg.model.checkpoint_dir))


def test_nobody_is_in_a_broadcast_before_the_weights_are_read(root, tmp_path):
    files = root, tmp_path / "read"
    on_ranks(2, str(tmp_path / "meeting"), load_while_the_other_waits, *files)


def run_on_nodes_of_their_own(rank, root, nodes):
    """One relative path is two folders to ranks that run in different ones."""
    own = nodes / f"node_{rank}"
    own.mkdir()
    os.chdir(own)
    changes = {"dry_run": True, "output_dir": "out/run"}
    cfg = check_config(OmegaConf.merge(case_config(root, "lora", 2), changes))
    refused = r"^config: output_dir out/run: .* by rank 1, .*; choose"
    # Nobody writes later what is not there now.
    with mock.patch.object(directory, "_CACHED_S", 0), pytest.raises(ValueError, match=refused):
        run(cfg, make_sharded(cfg))
    (own / "out").symlink_to(nodes, target_is_directory=True)
    run(cfg, make_sharded(cfg))
    assert [path.name for path in own.iterdir()] == ["out"]


def see_it_late(rank, folder):
    """To rank 1 the file of rank 0 is not there when it looks for it first."""
    looks, exists = [], Path.exists

    def late(path):
        if rank == 1 and path.parent == folder:
            looks.append(path)
            return len(looks) > 3 and exists(path)
        return exists(path)

    with mock.patch.object(Path, "exists", late):
        directory.check_shared(folder, Sharded("cpu"))
    assert len(looks) == (4 if rank == 1 else 0)


def test_a_file_that_a_network_shows_late_is_waited_for(tmp_path):
    on_ranks(2, str(tmp_path / "meeting"), see_it_late, tmp_path)


def test_ranks_that_do_not_share_a_folder_are_refused(root, tmp_path):
    (tmp_path / "nodes").mkdir()
    on_ranks(2, str(tmp_path / "meeting"), run_on_nodes_of_their_own, root, tmp_path / "nodes")
    assert sorted(path.name for path in (tmp_path / "nodes").iterdir()) == ["node_0", "node_1"]
