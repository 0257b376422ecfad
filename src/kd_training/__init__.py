"""The only training loop, and the placements it runs on."""

from kd_training.many_devices import run_sharded
from kd_training.placement.one_device import OneDevice, Placement
from kd_training.placement.sharded import Sharded
from kd_training.trainer import Trainer, run

__all__ = ["OneDevice", "Placement", "Sharded", "Trainer", "run", "run_sharded"]
