"""Who a config's teachers are, by their files."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kd_config.components import argument
from kd_config.schema import RunConfig
from kd_teachers.store.identity import Identity, tokenizer_hashes, weight_hashes
from kd_training.placement.one_device import Placement

BASE = "base"  # the teacher that the student itself is, without its adapter
# Of a model's arguments, those that say where it is, or how long a text it may be given.
_NO_SETTINGS = ("checkpoint_dir", "max_seq_len")


def identity_of(
    config: RunConfig, model: Any, checkpointer: Any, quantization: Any, placement: Placement
) -> Identity:
    """The teacher that these nodes of a config describe; rank 0 reads the files.

    Args:
        config: The run's config.
        model: Node of the model; None where the config does not say it.
        checkpointer: Node of its checkpointer.
        quantization: What its layers become.
        placement: The ranks.
    """
    own = config.tokenizer if config.teacher_tokenizer is None else config.teacher_tokenizer
    found = None
    if placement.rank == 0:
        directory = argument(checkpointer, "checkpoint_dir")
        files = argument(checkpointer, "checkpoint_files")
        listed = files if files is None or OmegaConf.is_list(files) else None
        found = Identity(
            name="the teacher" if directory is None else Path(directory).name,
            weights={} if directory is None else weight_hashes(Path(directory), listed),
            settings={} if model is None else _settings(model, quantization),
            tokenizer=tokenizer_hashes(_plain(own)),
        )
    return placement.gather(found)[0]


def nodes_of_teacher(config: RunConfig, cache_key: str) -> tuple[Any, Any, Any]:
    """The nodes of model, checkpointer and quantisation that belong to a cache's key."""
    if cache_key != "teacher_cache":
        named = config.teachers[cache_key.split(".")[1]]
        return named.model, named.checkpointer, named.quantization
    if config.teacher_model == BASE:
        return BASE, config.checkpointer, None
    return config.teacher_model, config.teacher_checkpointer, config.teacher_quantization


def _settings(model: Any, quantization: Any) -> dict[str, Any]:
    plain = _plain(model)
    if isinstance(plain, dict):
        plain = {k: v for k, v in plain.items() if k not in _NO_SETTINGS}
    return json.loads(json.dumps({"model": plain, "quantization": _plain(quantization)}))


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
