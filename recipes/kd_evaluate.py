"""Score a run's teacher, its student before, and all its finished students on `dataset_val`.

tune run kd_evaluate --config out/bert_sst2/config.yaml
tune run kd_evaluate --config out/t5_wmt16/config.yaml evaluation.num_beams=1 \
    evaluation.max_samples=100 "evaluation.models={forward: out/forward/epoch_0}"

takes a run's config as it is. Accuracy, F1 and Matthews for classifiers; BLEU and chrF of the
model's own beam search for encoder-decoders; perplexity for decoders, of which lm_eval tells more.
`evaluation` changes any argument of `kd_analysis.evaluate.evaluate.evaluate`, and its `name` what
tables call the data. The results lie beside the models, and `make report` reads them.
"""

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torchtune import config

from kd_analysis.evaluate.evaluate import TABLE, Data, evaluate
from kd_analysis.report.runs import models_of_run
from kd_config.check import check_config, typed
from kd_config.command_line import run_main
from kd_config.components import check_component
from kd_data.loaders import collate_with
from kd_data.samples import build_dataset, build_tokenizer
from kd_training.build import build_model, ignore_index


@config.parse
def main(cfg: DictConfig) -> None:
    """Evaluate a run."""
    options = dict(cfg.pop("evaluation", None) or {})
    name = options.pop("name", None)
    node = {"_component_": "kd_analysis.evaluate.evaluate.evaluate", **options}
    check_component("evaluation", OmegaConf.create(node))
    cfg = check_config(cfg)
    run = typed(cfg)
    if cfg.dataset_val is None:
        raise ValueError("config: kd_evaluate scores on dataset_val; set it")
    facts = build_model(run.model, "model", torch.float32).facts
    tokenizer, ignore = build_tokenizer(run.tokenizer, "tokenizer"), ignore_index(run)
    data = Data(
        name or OmegaConf.select(cfg, "dataset_val.name") or "heldout",
        build_dataset(run.dataset_val, tokenizer, "dataset_val", ignore, facts),
        collate_with(facts, tokenizer, None, ignore),
        tokenizer,
        ignore,
    )
    given = options.pop("models", None)
    models = models_of_run(cfg) if given is None else {k: Path(v) for k, v in given.items()}
    where = {"device": cfg.device, "dtype": cfg.dtype} | options
    output_dir = Path(cfg.output_dir)
    print(evaluate(models, data, output_dir, facts.task, **where))
    print(f"table: {output_dir / TABLE}")


if __name__ == "__main__":
    run_main(main)
