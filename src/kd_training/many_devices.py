"""A run on the ranks of a launcher."""

from collections.abc import Callable
from contextlib import ExitStack

import torch.distributed as dist
from omegaconf import DictConfig
from torchtune import training

from kd_config.check import check_config
from kd_training.caching.run import cache_teacher
from kd_training.placement.launcher import last_words
from kd_training.placement.one_device import OneDevice, Placement, find_device
from kd_training.placement.sharded import Sharded
from kd_training.start import run


def make_sharded(cfg: DictConfig) -> Sharded:
    """The placement that a checked config describes, on the ranks of the process group.

    Raises:
        ValueError: If it has a bad value, or weights are to be rounded at random, which torchao can
            do to whole ones only.
    """
    if cfg.optimizer.get("bf16_stochastic_round"):
        raise ValueError(
            "config: optimizer.bf16_stochastic_round rounds whole weights, not the shares that "
            "kd_distributed keeps; leave it out: what is trained is then kept in fp32"
        )
    return Sharded(
        cfg.device,
        reshard_after_forward=cfg.fsdp_reshard_after_forward,
        cpu_offload=cfg.fsdp_cpu_offload,
        custom_sharded_layers=cfg.custom_sharded_layers,
        shard_teacher=cfg.teacher_sharding == "full",
        replicas=cfg.data_parallel_replicate_dim,
    )


def run_sharded(cfg: DictConfig) -> None:
    """Run on every rank that the launcher started.

    Raises:
        ValueError: If there is no launcher.
    """
    if not dist.is_torchelastic_launched():
        raise ValueError(
            "kd_distributed needs the launcher: tune run --nproc_per_node N kd_distributed "
            "--config …; for one device use kd_single_device"
        )
    _on_ranks(cfg, run)


def run_cache_teacher(cfg: DictConfig) -> None:
    """Keep a teacher's answers, on one device or on every rank that the launcher started."""
    if dist.is_torchelastic_launched():
        _on_ranks(cfg, cache_teacher)
    else:
        cache_teacher(cfg, OneDevice(check_config(cfg).device))


def _on_ranks(cfg: DictConfig, work: Callable[[DictConfig, Placement], None]) -> None:
    with ExitStack() as after_last_words, last_words():
        cfg = check_config(cfg)
        device = find_device(cfg.device).type
        # What is offloaded needs gloo beside the GPUs' backend; CPU processes have nothing else.
        offload = cfg.fsdp_cpu_offload and device != "cpu"
        dist.init_process_group(training.get_distributed_backend(device, offload))
        after_last_words.callback(dist.destroy_process_group)
        work(cfg, make_sharded(cfg))
