"""From the config's nodes to models and their checkpointers, before any weight is read.

Decoders are built on the meta device, which costs nothing and tells depth, width and vocabulary, so
that whatever does not fit together is found at once.
"""

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torchao.core.config import AOBaseConfig
from torchtune import training
from torchtune.modules import TransformerDecoder
from torchtune.modules.loss import CEWithChunkedOutputLoss

from hf_models import HFCheckpointer
from hf_models.blocks import checkpoint_blocks, compile_blocks
from hf_models.model import Model
from hf_models.precision import keep_masters
from hf_models.quantization import NF4
from hf_models.torchtune_decoder.model import DecoderModel
from hf_models.transformers_model.model import TransformersModel
from kd_config.components import argument, component, expect, imported, takes
from kd_config.schema import RunConfig
from kd_training.placement.offloading import check_offloading, offload_activations

_CROSS_ENTROPIES = (nn.CrossEntropyLoss, CEWithChunkedOutputLoss)


def build_model(node: Any, key: str, dtype: torch.dtype) -> Model:
    """The model that a key's node names, on the meta device."""
    with training.set_default_dtype(dtype), torch.device("meta"):
        built = component(node, key)
    if isinstance(built, TransformersModel):
        return built
    kind = "a torchtune decoder, or hf_models.auto_model"
    expect(isinstance(built, TransformerDecoder), node, key, kind)
    return DecoderModel(built)


def build_student(config: RunConfig, dtype: torch.dtype) -> Model:
    """The student with its adapter (or, without one, all of its weights) trainable.

    What is trained is kept in fp32, except by an optimizer that rounds bf16 weights at random: such
    updates add up although each is below a weight's precision.

    Raises:
        ValueError: If it cannot be built, has no adapter although only that is to be saved, or its
            activations cannot be offloaded.
    """
    model = build_model(config.model, "model", dtype)
    adapter = model.train_adapter()
    if not adapter and config.save_adapter_weights_only:
        raise ValueError(
            f"config: save_adapter_weights_only is true, but {config.model._component_} has no "
            "adapter; set it to false, or train one with hf_models.lora_decoder"
        )
    if config.compile:
        compile_blocks(model)
    if config.enable_activation_checkpointing:
        checkpoint_blocks(model)
    if config.enable_activation_offloading:
        check_offloading(config)
        offload_activations(model.module)
    if adapter or not argument(config.optimizer, "bf16_stochastic_round"):
        keep_masters(model.module, dtype)
    return model


def build_quantization(key: str, node: Any) -> Any:
    """What a key of quantisation names: ``nf4``, one of torchao's configs, or None.

    Raises:
        ValueError: If it is another name or another component.
    """
    if isinstance(node, str) and node != NF4:
        raise ValueError(
            f"config: {key} is {node!r}; use {NF4} or one of torchao's configs, "
            "such as {_component_: torchao.quantization.Int8WeightOnlyConfig}"
        )
    if node is None or isinstance(node, str):
        return node
    built = component(node, key)
    kind = "one of torchao's configs, such as torchao.quantization.Int8WeightOnlyConfig"
    expect(isinstance(built, AOBaseConfig), node, key, kind)
    return built


def build_checkpointer(node: Any, key: str, model: Model) -> tuple[Any, list[str]]:
    """The checkpointer that a key's node names, with the headers of its files checked where it can.

    Returns:
        It, and what a person should know of its files.

    Raises:
        ValueError: If it is none that knows the names of the model's weights.
    """
    checkpointer = component(node, key)
    if isinstance(checkpointer, HFCheckpointer):
        checkpointer.layout = model.layout
        return checkpointer, checkpointer.check()
    fits = isinstance(model.module, TransformerDecoder)
    expect(fits, node, key, f"hf_models.HFCheckpointer for {model.facts.name}")
    return checkpointer, []


def build_scheduler(node: Any, optimizer: torch.optim.Optimizer, num_steps: int) -> Any:
    """The schedule of the learning rate, or None.

    Raises:
        ValueError: If it is something else.
    """
    scheduler = component(
        node, "lr_scheduler", optimizer, num_training_steps=num_steps, last_epoch=-1
    )
    fits = scheduler is None or hasattr(scheduler, "step")
    expect(fits, node, "lr_scheduler", "a learning rate scheduler")
    return scheduler


def build_optimizer(node: Any, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer over groups of parameters; torch's own ones in one pass over each of them.

    Raises:
        ValueError: If a checkpoint could not keep its state.
    """
    optimizer = component(node, "optimizer", groups, **_in_one_pass(node, groups))
    if not hasattr(optimizer, "state"):
        raise ValueError(
            f"config: optimizer: {type(optimizer).__name__} keeps its state where no checkpoint "
            "reaches it (it has no attribute state); use another, such as torch.optim.AdamW"
        )
    return optimizer


def _in_one_pass(node: Any, groups: list[dict[str, Any]]) -> dict[str, bool]:
    """The option for kernels of the same update that torch takes only where it is told to."""
    if any(name in node for name in ("fused", "foreach")) or not takes(node, "fused"):
        return {}
    # Of weights that are sharded, torch has these kernels for Adam's update alone.
    sharded = any(isinstance(weight, DTensor) for group in groups for weight in group["params"])
    adam = (torch.optim.Adam, torch.optim.AdamW)
    return {} if sharded and imported(node["_component_"]) not in adam else {"fused": True}


def build_profiler(config: RunConfig) -> Any:
    """torchtune's profiler as ``profiler`` sets it up; one that does nothing without that key."""
    node = config.profiler
    if node is None:
        return training.DummyProfiler()
    built = component(node, "profiler")
    fits = isinstance(built, tuple) and len(built) == 2
    expect(fits, node, "profiler", "torchtune.training.setup_torch_profiler, or left out")
    return built[0]


def ignore_index(config: RunConfig) -> int:
    """The label that marks a position without a target, from ``loss``.

    Raises:
        ValueError: If ``loss`` is something else than plain cross-entropy: the labels' part is
            computed in the chunked pass, so no other loss would ever be called.
    """
    if config.loss is None:
        return -100
    loss = component(config.loss, "loss")
    plain = getattr(loss, "label_smoothing", 0) == 0 and getattr(loss, "weight", None) is None
    kind = "plain cross-entropy: torchtune.modules.loss.CEWithChunkedOutputLoss or null"
    expect(isinstance(loss, _CROSS_ENTROPIES) and plain, config.loss, "loss", kind)
    return loss.ignore_index
