"""Distil on one device, CPU or GPU.

tune run kd_single_device --config configs/quickstart.yaml
tune run kd_single_device --config configs/quickstart.yaml max_steps_per_epoch=5
"""

from omegaconf import DictConfig
from torchtune import config

from kd_config.check import check_config
from kd_config.command_line import run_main
from kd_training import OneDevice, run


@config.parse
def main(cfg: DictConfig) -> None:
    """Distil a frozen teacher into a student on one device."""
    cfg = check_config(cfg)
    run(cfg, OneDevice(cfg.device))


if __name__ == "__main__":
    run_main(main)
