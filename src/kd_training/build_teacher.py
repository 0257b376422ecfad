"""From the config's nodes to whoever teaches, before any weight is read."""

from typing import Any, NamedTuple

import torch

from hf_models.model import Model
from kd_config.components import argument
from kd_config.schema import RunConfig
from kd_config.sections import NamedTeacher
from kd_config.weights import loss_weights
from kd_teachers import Cached, Client, Live, OwnBase, Served, Several, Teacher
from kd_training import build
from kd_training.identity import BASE, nodes_of_teacher


def build_teacher(config: RunConfig, student: Model, dtype: torch.dtype) -> Teacher:
    """Whoever the config names: a model, the student's own base, kept answers, several of them.

    Raises:
        ValueError: If the config has none, or it cannot be built.
        OSError: If a file is missing or unreadable.
    """
    if config.teachers:
        named = {name: _named(config, name, node, dtype) for name, node in config.teachers.items()}
        weights = {name: node.weight for name, node in config.teachers.items()}
        return Several(named, weights, config.teacher_average)
    if config.teacher_server is not None:
        return _served(config, student)
    if config.teacher_cache is not None:
        return Cached.open(config.teacher_cache)
    if config.teacher_model == BASE:
        return _own_base(student)
    return _live(config, dtype)


def _served(config: RunConfig, student: Model) -> Served:
    """A teacher elsewhere, which is there and answers."""
    settings = config.teacher_server
    assert settings is not None
    if student.facts.task != "causal_lm":
        raise ValueError(
            f"config: teacher_server scores causal language models, and {student.facts.name} is "
            "none"
        )
    if loss_weights(config)["ir"] > 0:
        raise ValueError(
            "config: ir needs the outputs of the teacher's layers, which no server gives; set "
            "layer_mapping: none"
        )
    client = Client(
        settings.url,
        settings.model,
        settings.timeout_s,
        settings.attempts,
        settings.wait_s,
        settings.api_key_env,
    )
    served = Served(
        client,
        settings.top_k,
        settings.batch_size,
        settings.concurrency,
        student.facts.vocabulary,
    )
    served.look()
    return served


class Asked(NamedTuple):
    """The live teacher whose answers are to be kept.

    Attributes:
        key: The config's key of its model.
        teacher: Who is asked.
        model: The model that answers.
        student: Student and checkpointer, where the model is the student's base; else None.
        nodes: The config's nodes of model, checkpointer and quantisation.
    """

    key: str
    teacher: Teacher
    model: Model
    student: tuple[Model, Any] | None
    nodes: tuple[Any, Any, Any]


def build_asked(config: RunConfig, student: Model, dtype: torch.dtype) -> Asked:
    """The teacher of a config as it is when nothing is kept yet; of several ``cache.teacher``.

    Raises:
        ValueError: If the config has none, or it cannot be built.
        OSError: If a file is missing or unreadable.
    """
    name = config.cache.teacher
    if config.teachers and name not in config.teachers:
        names = ", ".join(config.teachers)
        raise ValueError(f"config: cache.teacher is {name!r}; name one of the teachers: {names}")
    if name is not None and config.teachers:
        node = config.teachers[name]
        live = _named_model(config, name, node, dtype)
        key, nodes = f"teachers.{name}.cache", (node.model, node.checkpointer, node.quantization)
        return Asked(key, live, live.model, None, nodes)
    nodes = nodes_of_teacher(config, "teacher_cache")
    if config.teacher_model == BASE:
        own = build.build_checkpointer(config.checkpointer, "checkpointer", student)[0]
        return Asked("model", _own_base(student), student, (student, own), nodes)
    live = _live(config, dtype)
    return Asked("teacher_model", live, live.model, None, nodes)


def _live(config: RunConfig, dtype: torch.dtype) -> Live:
    for key in ("teacher_model", "teacher_checkpointer"):
        if getattr(config, key) is None:
            raise ValueError(
                f"config: {key} must be set (or give all that asks the teacher the weight 0)"
            )
    return _model(
        config,
        dtype,
        {
            "teacher_model": config.teacher_model,
            "teacher_checkpointer": config.teacher_checkpointer,
        },
        ("teacher_quantization", config.teacher_quantization),
    )


def _own_base(student: Model) -> OwnBase:
    frozen = any(not parameter.requires_grad for parameter in student.module.parameters())
    if not frozen or student.facts.classes is not None:
        raise ValueError(
            "config: teacher_model is base, but not only an adapter of the student is trained: "
            "without it there is no base left; train one with hf_models.lora_decoder or "
            "hf_models.lora_auto_model (of a classifier the head is trained too), or name a teacher"
        )
    return OwnBase(student)


def _named(config: RunConfig, name: str, node: NamedTeacher, dtype: torch.dtype) -> Teacher:
    if node.cache is not None:
        return Cached.open(node.cache, f"teachers.{name}.cache")
    return _named_model(config, name, node, dtype)


def _named_model(config: RunConfig, name: str, node: NamedTeacher, dtype: torch.dtype) -> Live:
    key = f"teachers.{name}"
    nodes = {f"{key}.model": node.model, f"{key}.checkpointer": node.checkpointer}
    for missing, value in nodes.items():
        if value is None:
            raise ValueError(f"config: {missing} must be set, or {key}.cache")
    return _model(config, dtype, nodes, (f"{key}.quantization", node.quantization))


def _model(
    config: RunConfig, dtype: torch.dtype, nodes: dict[str, Any], quantization: tuple[str, Any]
) -> Live:
    """A frozen model in eval mode, with the headers of its files checked."""
    (model_key, model_node), (checkpointer_key, checkpointer_node) = nodes.items()
    model = build.build_model(model_node, model_key, dtype)
    model.module.requires_grad_(False).eval()
    if config.compile:
        build.compile_blocks(model)
    checkpointer, untrained = build.build_checkpointer(checkpointer_node, checkpointer_key, model)
    if untrained:
        raise ValueError(f"config: {checkpointer_key}: {untrained[0]}; a teacher must be trained")
    directory = argument(checkpointer_node, "checkpoint_dir")
    return Live(model, checkpointer, build.build_quantization(*quantization), model_key, directory)
