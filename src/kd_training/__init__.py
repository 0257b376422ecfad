"""The only training loop, and the placements it runs on."""

from kd_training.errors import run_main
from kd_training.placement import OneDevice, Placement
from kd_training.sharded import Sharded, run_sharded
from kd_training.trainer import Trainer, run

__all__ = ["OneDevice", "Placement", "Sharded", "Trainer", "run", "run_main", "run_sharded"]
