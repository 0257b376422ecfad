"""What is done to every block of a model."""

import os

from torch import nn
from torchtune.training import set_activation_checkpointing

from hf_models.model import Model


def blocks_of(model: Model) -> list[nn.Module]:
    """All of its blocks, stack after stack."""
    return [block for blocks in model.stacks().values() for block in blocks]


def compile_blocks(model: Model) -> None:
    """Compile block by block, with the backend that torchtune's environment variable names."""
    backend = os.environ.get("TORCH_COMPILE_BACKEND", "inductor")
    for block in blocks_of(model):
        block.compile(backend=backend)


def checkpoint_blocks(model: Model) -> None:
    """Keep only the blocks' inputs for the backward, which runs each of them once more."""
    own = {id(block) for block in blocks_of(model)}

    def wraps(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        return recurse or id(module) in own

    set_activation_checkpointing(model.module, auto_wrap_policy=wraps)
