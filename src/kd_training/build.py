"""From the config's nodes to models and objective, before any weight is read.

Decoders are built on the meta device, which costs nothing and tells depth, width and vocabulary, so
that whatever does not fit together is found at once.
"""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchtune import training
from torchtune.config import instantiate
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.modules.loss import CEWithChunkedOutputLoss
from torchtune.modules.peft import get_adapter_params, set_trainable_params

from hf_models import HFCheckpointer, vocabulary_mismatch
from kd_training.config import loss_weights, needs_teacher
from kd_training.objective import Objective
from kd_training.schema import Scales
from layer_mapping import LayerMatcher, resolve

_CROSS_ENTROPIES = (nn.CrossEntropyLoss, CEWithChunkedOutputLoss)


def build_decoder(node: DictConfig, dtype: torch.dtype) -> Any:
    """The decoder that ``node`` names, on the meta device."""
    with training.set_default_dtype(dtype), torch.device("meta"):
        return instantiate(node)


def build_student(cfg: DictConfig, dtype: torch.dtype) -> Any:
    """The student with its adapter (or, without one, all of its weights) trainable."""
    student = build_decoder(cfg.model, dtype)
    adapter = get_adapter_params(student)
    if adapter:
        set_trainable_params(student, adapter)
    if cfg.compile:
        training.compile_model(student, verbose=False)
    if cfg.enable_activation_checkpointing:
        training.set_activation_checkpointing(
            student, auto_wrap_policy={TransformerSelfAttentionLayer}
        )
    return student


def build_teacher(cfg: DictConfig, dtype: torch.dtype) -> Any:
    """The frozen teacher in eval mode; None where no part of the loss looks at it."""
    if not needs_teacher(loss_weights(cfg)):
        return None
    teacher = build_decoder(cfg.teacher_model, dtype).requires_grad_(False).eval()
    if cfg.compile:
        training.compile_model(teacher, verbose=False)
    return teacher


def build_objective(
    cfg: DictConfig, student: Any, teacher: Any, device: torch.device, ignore_index: int
) -> Objective:
    """The objective of ``cfg``.

    Raises:
        ValueError: If a pair of layers is out of range, or a loss has unusable arguments.
    """
    weights = loss_weights(cfg)
    matcher = build_matcher(cfg, weights, student, teacher, device)
    prompt = weights.kd > 0 and cfg.prompt_kd_loss is not None
    return Objective(
        student,
        teacher,
        weights,
        instantiate(cfg.kd_loss) if weights.kd > 0 else None,
        matcher,
        kd_scope=cfg.token_scope.kd,
        ir_scope=cfg.token_scope.ir,
        prompt_kd_loss=instantiate(cfg.prompt_kd_loss) if prompt else None,
        num_chunks=OmegaConf.select(cfg, "loss.num_output_chunks"),
        ignore_index=ignore_index,
    )


def build_matcher(
    cfg: DictConfig, weights: Scales, student: Any, teacher: Any, device: torch.device
) -> LayerMatcher | None:
    """The matched pairs with their projections; None where intermediate layers have no weight."""
    if weights.ir == 0:
        return None
    depths = len(student.layers), len(teacher.layers)
    spec = cfg.layer_mapping
    if isinstance(spec, DictConfig):
        pairs = resolve(lambda *sizes: instantiate(spec, *sizes), *depths)
    else:
        pairs = resolve(OmegaConf.to_object(spec) if OmegaConf.is_list(spec) else spec, *depths)
    if cfg.ir_loss is None:
        raise ValueError(f"config: layer_mapping is {spec}, so ir_loss must be set")
    with device:
        return LayerMatcher(
            pairs,
            instantiate(cfg.ir_loss),
            student.tok_embeddings.embedding_dim,
            teacher.tok_embeddings.embedding_dim,
            projection=cfg.layer_projection.mode,
        )


def build_checkpointer(node: DictConfig) -> Any:
    """The checkpointer that ``node`` names, with the headers of its files checked where it can."""
    checkpointer = instantiate(node)
    if isinstance(checkpointer, HFCheckpointer):
        checkpointer.check()
    return checkpointer


def ignore_index(cfg: DictConfig) -> int:
    """The label that marks a position without a target, from ``loss``.

    Raises:
        ValueError: If ``loss`` is something else than plain cross-entropy: the labels' part is
            computed in the chunked pass, so no other loss would ever be called.
    """
    if cfg.loss is None:
        return -100
    loss = instantiate(cfg.loss)
    plain = getattr(loss, "label_smoothing", 0) == 0 and getattr(loss, "weight", None) is None
    if not isinstance(loss, _CROSS_ENTROPIES) or not plain:
        raise ValueError(
            f"config: loss is {cfg.loss._component_}; it must be plain cross-entropy: "
            "torchtune.modules.loss.CEWithChunkedOutputLoss or null"
        )
    return loss.ignore_index


def check_vocabularies(cfg: DictConfig) -> None:
    """Refuse a teacher whose token ids mean something else than the student's.

    Raises:
        ValueError: If the two directories' tokenizers give one id to different tokens.
    """
    directories = [
        OmegaConf.select(cfg, f"{name}.checkpoint_dir")
        for name in ("checkpointer", "teacher_checkpointer")
    ]
    if None in directories:
        return
    mismatch = vocabulary_mismatch(*map(Path, directories))
    if mismatch:
        raise ValueError(
            f"checkpointer and teacher_checkpointer: the vocabularies disagree: {mismatch}; "
            "student and teacher must share one tokenizer"
        )


def count_parameters(*modules: nn.Module | None) -> tuple[int, int]:
    """Number of all and of trainable parameters."""
    parameters = [p for m in modules if m is not None for p in m.parameters()]
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
