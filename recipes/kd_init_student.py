"""Make a shallow (or narrow) student directory from a teacher's.

tune run kd_init_student --config configs/init_student.yaml teacher_dir=models/Qwen3-8B \
    output_dir=models/qwen3-8b-9-layers num_layers=9
"""

from omegaconf import DictConfig, OmegaConf
from torchtune import config

from hf_models import init_student
from kd_training import run_main


@config.parse
def main(cfg: DictConfig) -> None:
    """Initialise a student from a teacher."""
    arguments = OmegaConf.to_container(cfg, resolve=True)
    path = init_student(**arguments)
    print(f"student written to {path}")


if __name__ == "__main__":
    run_main(main)
