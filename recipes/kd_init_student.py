"""Make a shallow (or narrow) student directory from a teacher's.

tune run kd_init_student --config configs/init_student.yaml teacher_dir=models/Qwen3-8B \
    output_dir=models/qwen3-8b-9-layers num_layers=9

`layers: block_influence` and `layers: angular_distance` measure the blocks on texts: `dataset` and
`tokenizer` as in a run's config, `num_samples` of them (256), `batch_size` at a time (8).
"""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torchtune import config
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX

from hf_models import auto_model
from hf_models.block_scores import Calibration
from hf_models.student_card import read_origin
from hf_models.transformers_model.config import any_task
from kd_analysis.draw_blocks import draw_blocks
from kd_config.command_line import run_main
from kd_config.components import check_component, component
from kd_data.loaders import collate_with
from kd_data.samples import build_dataset, build_tokenizer

_DATA = {"dataset": None, "tokenizer": None, "num_samples": 256, "batch_size": 8}


@config.parse
def main(cfg: DictConfig) -> None:
    """Initialise a student from a teacher."""
    data = {key: cfg.pop(key, default) for key, default in _DATA.items()}
    node = OmegaConf.create({"_component_": "hf_models.init_student", **cfg})
    check_component("init_student", node)
    measured = isinstance(cfg.get("layers"), str) and data["dataset"] is not None
    texts = list(calibration(cfg, **data)) if measured else None
    directory = component(node, "init_student", calibration=texts)
    if texts is not None and read_origin(directory)["scores"]:
        draw_blocks(directory)
    print(f"student written to {directory}")


def calibration(
    cfg: DictConfig, dataset: Any, tokenizer: Any, num_samples: int, batch_size: int
) -> Iterator[Calibration]:
    """The first samples of the dataset, as the teacher reads them."""
    if tokenizer is None:
        raise ValueError("config: tokenizer must be set, as dataset is")
    for key, node in (("dataset", dataset), ("tokenizer", tokenizer)):
        check_component(key, node)
    facts = auto_model(cfg.teacher_dir, cfg.get("task") or any_task(cfg.teacher_dir)).facts
    built = build_tokenizer(tokenizer, "tokenizer")
    samples = build_dataset(dataset, built, "dataset", CROSS_ENTROPY_IGNORE_IDX, facts)
    collate = collate_with(facts, built, None, CROSS_ENTROPY_IGNORE_IDX)
    count = min(num_samples, len(samples))
    for start in range(0, count, batch_size):
        batch = collate([samples[i] for i in range(start, min(start + batch_size, count))])
        yield Calibration(batch.inputs, batch.scopes["all"])


if __name__ == "__main__":
    run_main(main)
