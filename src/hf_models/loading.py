"""Filling a decoder that was built on the meta device."""

from collections.abc import Mapping

import torch
from torch import nn
from torchtune.modules.peft import LoRALinear, get_adapter_state_dict
from torchtune.training import validate_no_params_on_meta_device


def load_weights(
    model: nn.Module,
    state_dict: Mapping[str, torch.Tensor],
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Puts weights into ``model``, which may lie on the meta device; afterwards nothing does.

    Tensors that already have the device and dtype are used as they are, without a copy. LoRA
    matrices are initialised with torch's global random numbers; rotary caches are computed.

    Args:
        model: A decoder by our builders or torchtune's.
        state_dict: All weights but LoRA's, under torchtune's names.
        device: Where the model goes.
        dtype: What its parameters are.

    Raises:
        ValueError: If a weight is missing, unexpected or of the wrong shape.
    """
    # By the names of the state dict: those of the modules may have a checkpointing wrapper in them.
    state = model.state_dict()
    adapter = get_adapter_state_dict(state, device=None)
    expected = {name: p.shape for name, p in state.items() if name not in adapter}
    _check(expected, state_dict)
    weights = {name: tensor.to(device, dtype) for name, tensor in state_dict.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.to_empty(device=device)
            module.to(dtype)
            module.initialize_parameters()
        rope_init = getattr(module, "rope_init", None)
        if callable(rope_init):
            with torch.device(device):
                rope_init()
    validate_no_params_on_meta_device(model)


def _check(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Tensor]) -> None:
    for name, shape in expected.items():
        if name not in found:
            raise ValueError(f"weight {name} of the model is not in the checkpoint")
        if found[name].shape != shape:
            raise ValueError(
                f"weight {name} has shape {list(found[name].shape)} in the checkpoint, "
                f"but {list(shape)} in the model"
            )
    for name in found:
        if name not in expected:
            raise ValueError(f"weight {name} of the checkpoint has no place in the model")
