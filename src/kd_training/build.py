"""From the config's nodes to models and objective, before any weight is read.

Decoders are built on the meta device, which costs nothing and tells depth, width and vocabulary, so
that whatever does not fit together is found at once.
"""

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchao.core.config import AOBaseConfig
from torchtune import training
from torchtune.modules import TransformerDecoder, TransformerSelfAttentionLayer
from torchtune.modules.loss import CEWithChunkedOutputLoss
from torchtune.modules.peft import get_adapter_params, set_trainable_params

from hf_models import HFCheckpointer
from hf_models.precision import keep_masters
from hf_models.quantization import NF4
from kd_config.check import component
from kd_config.kinds import expect
from kd_config.values import loss_weights, needs_teacher
from kd_losses import ForwardKLLoss, KDLoss
from kd_training.objective.matching import build_matcher
from kd_training.objective.objective import Objective
from kd_training.placement.offloading import check_offloading, offload_activations
from kd_training.preflight.two_tokenizers import check_two_tokenizers

_CROSS_ENTROPIES = (nn.CrossEntropyLoss, CEWithChunkedOutputLoss)


def build_decoder(cfg: DictConfig, key: str, dtype: torch.dtype) -> Any:
    """The decoder that ``cfg[key]`` names, on the meta device."""
    with training.set_default_dtype(dtype), torch.device("meta"):
        decoder = component(cfg[key], key)
    expect(isinstance(decoder, TransformerDecoder), cfg, key, "a torchtune decoder")
    return decoder


def build_student(cfg: DictConfig, dtype: torch.dtype) -> Any:
    """The student with its adapter (or, without one, all of its weights) trainable.

    What is trained is kept in fp32, except by an optimizer that rounds bf16 weights at random: such
    updates add up although each is below a weight's precision.

    Raises:
        ValueError: If it cannot be built, has no adapter although only that is to be saved, or its
            activations cannot be offloaded.
    """
    student = build_decoder(cfg, "model", dtype)
    adapter = get_adapter_params(student)
    if adapter:
        set_trainable_params(student, adapter)
    elif cfg.save_adapter_weights_only:
        raise ValueError(
            f"config: save_adapter_weights_only is true, but {cfg.model._component_} has no "
            "adapter; set it to false, or train one with hf_models.lora_decoder"
        )
    if cfg.compile:
        training.compile_model(student, verbose=False)
    if cfg.enable_activation_checkpointing:
        training.set_activation_checkpointing(
            student, auto_wrap_policy={TransformerSelfAttentionLayer}
        )
    if cfg.enable_activation_offloading:
        check_offloading(cfg)
        offload_activations(student)
    if adapter or not cfg.optimizer.get("bf16_stochastic_round"):
        keep_masters(student, dtype)
    return student


def build_teacher(cfg: DictConfig, dtype: torch.dtype) -> Any:
    """The frozen teacher in eval mode; None where no part of the loss looks at it."""
    if not needs_teacher(loss_weights(cfg)):
        return None
    teacher = build_decoder(cfg, "teacher_model", dtype).requires_grad_(False).eval()
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
    kd_loss = _divergence(cfg, "kd_loss", ignore_index)
    check_two_tokenizers(cfg, kd_loss)
    matcher = build_matcher(cfg, weights, student, teacher, device)
    return Objective(
        student,
        teacher,
        weights,
        # Without a weight it is never called, but it still says which labels do not count.
        kd_loss or ForwardKLLoss(ignore_index=ignore_index),
        matcher,
        kd_scope=cfg.token_scope.kd if cfg.teacher_tokenizer is None else "matched",
        ir_scope=cfg.token_scope.ir,
        prompt_kd_loss=_divergence(cfg, "prompt_kd_loss", ignore_index),
        num_chunks=OmegaConf.select(cfg, "loss.num_output_chunks"),
    )


def _divergence(cfg: DictConfig, key: str, ignore_index: int) -> KDLoss | None:
    loss = component(cfg[key], key)
    if loss is None:
        return None
    kind = "a divergence of kd_losses, such as kd_losses.ForwardKLLoss, because it is computed "
    expect(isinstance(loss, KDLoss), cfg, key, kind + "straight from hidden states")
    if loss.ignore_index != ignore_index:
        raise ValueError(
            f"config: {key}.ignore_index is {loss.ignore_index}, but the labels use {ignore_index}"
        )
    return loss


def build_quantization(cfg: DictConfig) -> Any:
    """``teacher_quantization``: ``nf4``, one of torchao's configs, or None.

    Raises:
        ValueError: If it is another name or another component.
    """
    node = cfg.teacher_quantization
    if isinstance(node, str) and node != NF4:
        raise ValueError(
            f"config: teacher_quantization is {node!r}; use {NF4} or one of torchao's configs, "
            "such as {_component_: torchao.quantization.Int8WeightOnlyConfig}"
        )
    if node is None or isinstance(node, str):
        return node
    built = component(node, "teacher_quantization")
    kind = "one of torchao's configs, such as torchao.quantization.Int8WeightOnlyConfig"
    expect(isinstance(built, AOBaseConfig), cfg, "teacher_quantization", kind)
    return built


def build_checkpointer(cfg: DictConfig, key: str) -> Any:
    """The checkpointer ``cfg[key]``, with the headers of its files checked where it can."""
    checkpointer = component(cfg[key], key)
    if isinstance(checkpointer, HFCheckpointer):
        checkpointer.check()
    return checkpointer


def check_optimizer(optimizer: Any) -> None:
    """Refuse an optimizer whose state a checkpoint could not keep.

    Raises:
        ValueError: If it has none.
    """
    if not hasattr(optimizer, "state"):
        raise ValueError(
            f"config: optimizer: {type(optimizer).__name__} keeps its state where no checkpoint "
            "reaches it (it has no attribute state); use another, such as torch.optim.AdamW"
        )


def build_profiler(cfg: DictConfig) -> Any:
    """torchtune's profiler as ``profiler`` sets it up; one that does nothing without that key."""
    if cfg.profiler is None:
        return training.DummyProfiler()
    built = component(cfg.profiler, "profiler")
    fits = isinstance(built, tuple) and len(built) == 2
    expect(fits, cfg, "profiler", "torchtune.training.setup_torch_profiler, or left out")
    return built[0]


def ignore_index(cfg: DictConfig) -> int:
    """The label that marks a position without a target, from ``loss``.

    Raises:
        ValueError: If ``loss`` is something else than plain cross-entropy: the labels' part is
            computed in the chunked pass, so no other loss would ever be called.
    """
    if cfg.loss is None:
        return -100
    loss = component(cfg.loss, "loss")
    plain = getattr(loss, "label_smoothing", 0) == 0 and getattr(loss, "weight", None) is None
    kind = "plain cross-entropy: torchtune.modules.loss.CEWithChunkedOutputLoss or null"
    expect(isinstance(loss, _CROSS_ENTROPIES) and plain, cfg, "loss", kind)
    return loss.ignore_index


def count_parameters(*modules: nn.Module | None) -> tuple[int, int]:
    """Number of all and of trainable parameters."""
    parameters = [p for m in modules if m is not None for p in m.parameters()]
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
