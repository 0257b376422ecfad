"""torchtune's own recipe class for distillation on one device: its ``setup`` and its ``train``.

Only the checkpoint after the last step is left out. Losses (the chunked ones), data loading, loop
and optimizer step are the recipe's. So are the models of a Llama: torchtune's builders, with the
checkpointer that permutes weights for them. torchtune has no Qwen3: its decoder is put together by
our builder and read by our checkpointer, with torchtune's layers instead of ours but for the rotary
embedding. The tokenizer is ours, as torchtune reads no tokenizer.json as a model's tokenizer.
"""

import importlib.util
import json
import logging
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from omegaconf import DictConfig, OmegaConf
from step_clock import BACKWARD, DATA, LOSS, OPTIMIZER, STUDENT, TEACHER, Clock
from step_job import Job
from torchdata.stateful_dataloader import stateful_dataloader
from torchtune.modules import FeedForward, RMSNorm
from torchtune.modules.peft import LoRALinear

from hf_models.torchtune_decoder import builders

NUM_CHUNKS = 8  # its default
LOSSES = {"loss": "CEWithChunkedOutputLoss", "kd_loss": "ForwardKLWithChunkedOutputLoss"}
SCHEDULE = "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"


class Ticks:
    """A metric logger for the recipe, which writes to it once a step."""

    clock: Clock
    job: Job

    def log_config(self, config: DictConfig) -> None:
        """Nothing."""

    def log_dict(self, payload: dict[str, Any], step: int) -> None:
        """A step has ended. The recipe's own count has each text's first token in it."""
        labels = self.job.labels_of_step(step - 1)
        self.clock.tick(labels, ce=payload["class_loss"].item(), kd=payload["kd_loss"].item())

    def close(self) -> None:
        """Nothing."""


def train(job: Job, clock: Clock, base: dict[str, Any]) -> None:
    """Set it up, and run its steps under the clock."""
    own = {
        key: {"_component_": f"torchtune.modules.loss.{name}", "num_output_chunks": NUM_CHUNKS}
        for key, name in LOSSES.items()
    } | {
        "metric_logger": {"_component_": "step_torchtune.Ticks"},
        "lr_scheduler": {"_component_": SCHEDULE, "num_warmup_steps": 0},
        "log_every_n_steps": 1,
    }
    llama = _shape(job.student)["model_type"] == "llama"
    models = _llama(job, base) if llama else {}
    cfg = OmegaConf.create(base | own | models)
    recipe = _recipe_module().KDRecipeSingleDevice(cfg)
    with nullcontext() if llama else _with_its_own_layers():
        recipe.setup(cfg)
    recipe.save_checkpoint = lambda epoch: None
    logger = recipe._metric_logger
    logger.clock, logger.job = clock, job
    _watch(recipe, clock)
    clock.start()
    recipe.train()


def _shape(directory: str) -> dict[str, Any]:
    return json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))


def _llama(job: Job, base: dict[str, Any]) -> dict[str, Any]:
    """Models and checkpointers of torchtune."""
    found = {}
    for key, files, builder, directory in (
        ("model", "checkpointer", "lora_llama3_2", job.student),
        ("teacher_model", "teacher_checkpointer", "llama3_2", job.teacher),
    ):
        shape = _shape(directory)
        lora = {name: v for name, v in base[key].items() if "lora" in name and name[0] != "_"}
        found[key] = lora | {
            "_component_": f"torchtune.models.llama3_2.{builder}",
            "vocab_size": shape["vocab_size"],
            "num_layers": shape["num_hidden_layers"],
            "num_heads": shape["num_attention_heads"],
            "num_kv_heads": shape["num_key_value_heads"],
            "embed_dim": shape["hidden_size"],
            "intermediate_dim": shape["intermediate_size"],
            "max_seq_len": shape["max_position_embeddings"],
            "norm_eps": shape["rms_norm_eps"],
            "rope_base": int(shape["rope_parameters"]["rope_theta"]),
            "scale_factor": 1,  # no rescaled rotary embedding
            "tie_word_embeddings": shape["tie_word_embeddings"],
        }
        found[files] = {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": directory,
            "checkpoint_files": ["model.safetensors"],
            "model_type": "LLAMA3_2",
            "output_dir": job.folder,
        }
    return found


def _with_its_own_layers() -> Any:
    """While it lasts, our builder uses torchtune's layers, which are the same functions."""
    return mock.patch.multiple(
        builders, FusedLoRALinear=LoRALinear, FusedRMSNorm=RMSNorm, FusedFeedForward=FeedForward
    )


def _recipe_module() -> ModuleType:
    """The file of the recipe, which is no importable module."""
    import torchtune

    logging.getLogger("torchtune").setLevel(logging.WARNING)
    folder = Path(torchtune.__file__).parents[1] / "recipes"
    name = "knowledge_distillation_single_device"
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _watch(recipe: Any, clock: Clock) -> None:
    iterator = stateful_dataloader._StatefulSingleProcessDataLoaderIter
    clock.wrap(iterator, "_next_data", DATA)
    for model, phase in ((recipe._model, STUDENT), (recipe._teacher_model, TEACHER)):
        clock.wrap(model, "forward", phase)
        clock.wrap(model, "chunked_output", LOSS)
    clock.wrap(recipe._loss_fn, "forward", LOSS)
    clock.wrap(recipe._kd_loss_fn, "forward", LOSS)
    clock.wrap(recipe._optimizer, "step", OPTIMIZER)
    clock.wrap(torch.Tensor, "backward", BACKWARD)
