"""The only training loop, and the placements it runs on."""

from kd_training.many_devices import run_cache_teacher, run_sharded
from kd_training.objective.term import LogitsTerm, Term
from kd_training.placement.one_device import OneDevice, Placement
from kd_training.placement.sharded import Sharded
from kd_training.prepare import prepare
from kd_training.prepared import Run
from kd_training.start import run
from kd_training.train import train

__all__ = [
    "LogitsTerm",
    "OneDevice",
    "Placement",
    "Run",
    "Sharded",
    "Term",
    "prepare",
    "run",
    "run_cache_teacher",
    "run_sharded",
    "train",
]
