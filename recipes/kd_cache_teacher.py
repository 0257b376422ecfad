"""Ask a run's teacher about all of its texts once, so that runs need it no more.

tune run kd_cache_teacher --config configs/quickstart.yaml cache_dir=out/cache
tune run kd_cache_teacher --config configs/quickstart.yaml cache_dir=out/top64 \
    cache.logits=top_k cache.k=64
tune run --nproc_per_node 2 kd_cache_teacher --config configs/qwen3_forward.yaml cache_dir=out/cache

takes a run's config as it is. The same config with `teacher_cache: out/cache` then trains without
the teacher. After any interruption the same command goes on; with other datasets it adds what they
have more.
"""

from omegaconf import DictConfig
from torchtune import config

from kd_config.command_line import run_main
from kd_training import run_cache_teacher


@config.parse
def main(cfg: DictConfig) -> None:
    """Keep a teacher's answers."""
    run_cache_teacher(cfg)


if __name__ == "__main__":
    run_main(main)
