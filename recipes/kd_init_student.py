"""Make a shallow (or narrow) student directory from a teacher's.

tune run kd_init_student --config configs/init_student.yaml teacher_dir=models/Qwen3-8B \
    output_dir=models/qwen3-8b-9-layers num_layers=9
"""

from omegaconf import DictConfig, OmegaConf
from torchtune import config

from kd_config.command_line import run_main
from kd_config.components import check_component, component


@config.parse
def main(cfg: DictConfig) -> None:
    """Initialise a student from a teacher."""
    node = OmegaConf.create({"_component_": "hf_models.init_student", **cfg})
    check_component("init_student", node)
    print(f"student written to {component(node, 'init_student')}")


if __name__ == "__main__":
    run_main(main)
