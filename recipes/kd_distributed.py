"""Distil on many devices with FSDP2: GPUs (nccl) or CPU processes (gloo).

tune run --nproc_per_node 4 kd_distributed --config configs/qwen3_forward.yaml
"""

from omegaconf import DictConfig
from torchtune import config

from kd_config.command_line import run_main
from kd_training import run_sharded


@config.parse
def main(cfg: DictConfig) -> None:
    """Distil a frozen teacher into a student on all devices of the launcher."""
    run_sharded(cfg)


if __name__ == "__main__":
    run_main(main)
