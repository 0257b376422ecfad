"""Look into a run's students: angles between layers, overlap of their logits with the teacher's.

tune run kd_analyze --config out/quickstart/config.yaml
tune run kd_analyze --config out/quickstart/config.yaml analysis.num_samples=64 \
    "analysis.students={forward: out/forward/epoch_0, reverse: out/reverse/epoch_0}"

takes a run's config as it is: teacher, student before and newest student after, `dataset_val` (or
`dataset`), device and dtype. `analysis` changes any argument of
`kd_analysis.probe.analyze.analyze`.
"""

import torch
from omegaconf import DictConfig, OmegaConf
from torchtune import config
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX

from kd_analysis.probe.analyze import analyze
from kd_analysis.report.runs import analysis_of_run
from kd_config.check import check_config
from kd_config.command_line import run_main
from kd_config.components import check_component, component
from kd_data.samples import build_dataset
from kd_training.build import build_model


@config.parse
def main(cfg: DictConfig) -> None:
    """Analyse a run."""
    options = dict(cfg.pop("analysis", None) or {})
    node = OmegaConf.create({"_component_": "kd_analysis.probe.analyze.analyze", **options})
    check_component("analysis", node)
    cfg = check_config(cfg)
    facts = build_model(cfg.model, "model", torch.float32).facts
    if facts.task != "causal_lm":
        raise ValueError(
            f"config: model: kd_analyze compares causal language models, and {facts.name} is none; "
            "kd_evaluate scores it"
        )
    arguments = analysis_of_run(cfg) | options
    tokenizer = component(cfg.tokenizer, "tokenizer")
    key = "dataset" if cfg.dataset_val is None else "dataset_val"
    dataset = build_dataset(cfg[key], tokenizer, key, CROSS_ENTROPY_IGNORE_IDX)
    analyze(dataset=dataset, pad_id=tokenizer.pad_id, **arguments)
    print(f"pictures and numbers: {arguments['output_dir']}")


if __name__ == "__main__":
    run_main(main)
