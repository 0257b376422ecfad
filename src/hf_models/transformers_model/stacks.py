"""Where a transformers model keeps its blocks and its head."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_models.model import Stack

ENCODER, DECODER = "encoder", "decoder"
# What configs call the depth of each stack, where it is not num_hidden_layers.
_DEPTHS = {
    ENCODER: ("encoder_layers", "num_layers"),
    DECODER: ("decoder_layers", "num_decoder_layers"),
}


def find_stacks(module: Any, task: str) -> dict[str, str]:
    """Stack → the path of its blocks' ``ModuleList``.

    Raises:
        ValueError: If none of the module's lists has the number of blocks that the config says.
    """
    config = module.config
    if not config.is_encoder_decoder:
        name = DECODER if task == "causal_lm" else ENCODER
        return {name: _find(module, "", config.num_hidden_layers, name)}
    paths = {part: _part(module, part) for part in (ENCODER, DECODER)}
    return {
        part: _find(module.get_submodule(path), path, depth_of(config, part), part)
        for part, path in paths.items()
    }


def depth_of(config: Any, stack: str) -> int:
    """How many blocks a config says that a stack has."""
    return getattr(config, depth_key(config, stack))


def depth_key(config: Any, stack: str) -> str:
    """The field of a config that says it."""
    if config.is_encoder_decoder:
        for name in _DEPTHS[stack]:
            if getattr(config, name, None) is not None:
                return name
    return config.attribute_map.get("num_hidden_layers", "num_hidden_layers")


def _part(module: Any, part: str) -> str:
    """The path of an encoder or a decoder."""
    names = [name for name, _ in module.named_modules() if name.rpartition(".")[2] == part]
    if not names:
        raise ValueError(f"{type(module).__name__} has no {part}, though its config says so")
    return min(names, key=lambda name: name.count("."))


def _find(module: nn.Module, prefix: str, depth: int, stack: str) -> str:
    lists = [
        (name, len(one)) for name, one in module.named_modules() if isinstance(one, nn.ModuleList)
    ]
    fitting = [name for name, length in lists if length == depth]
    if not fitting:
        found = ", ".join(f"{name} ({length})" for name, length in lists[:4]) or "none"
        raise ValueError(
            f"{type(module).__name__}: its config says {depth} blocks in the {stack}, but it has "
            f"no list of so many modules (it has {found}); such models are not supported"
        )
    path = min(fitting, key=lambda name: name.count("."))
    return f"{prefix}.{path}" if prefix else path


def stack_sizes(module: Any, paths: Mapping[str, str]) -> dict[str, Stack]:
    """The size of each stack."""
    width = module.config.hidden_size
    return {
        name: Stack(len(list(module.get_submodule(path).children())), width)
        for name, path in paths.items()
    }


def find_head(module: Any, task: str, outputs: int) -> str:
    """The path of the layer that makes logits: the output embeddings, or the last linear layer.

    Raises:
        ValueError: If there is none of so many outputs.
    """
    found = module.get_output_embeddings() if task != "sequence_classification" else None
    if found is not None:
        return next(name for name, one in module.named_modules() if one is found)
    linear = [
        name
        for name, one in module.named_modules()
        if isinstance(one, nn.Linear) and one.out_features == outputs
    ]
    if not linear:
        raise ValueError(
            f"{type(module).__name__} has no linear layer of {outputs} outputs that could make its "
            "logits; such models are not supported"
        )
    return linear[-1]
