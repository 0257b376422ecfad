"""Filling a decoder that was built on the meta device."""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torchtune.modules.peft import DoRALinear as TorchtunesDoRALinear
from torchtune.modules.peft import get_adapter_state_dict
from torchtune.training import validate_no_params_on_meta_device

from hf_models.torchtune_decoder.dora import row_norms


def load_weights(
    model: nn.Module,
    state_dict: Mapping[str, torch.Tensor],
    device: torch.device | str,
    dtype: torch.dtype | None = None,
) -> None:
    """Puts weights into ``model``, which may lie on the meta device; afterwards nothing does.

    Tensors that already have the device and dtype are used as they are, without a copy. LoRA
    matrices are initialised with torch's global random numbers, DoRA's magnitudes from the
    weights; rotary caches are computed.

    Args:
        model: A decoder by our builders or torchtune's.
        state_dict: All weights but the adapter's, under torchtune's names.
        device: Where the model goes.
        dtype: What its parameters become; by default each keeps the dtype that it was built with.

    Raises:
        ValueError: If a weight is missing, unexpected or of the wrong shape.
    """
    complete = complete_state(model, state_dict, dtype)
    model.load_state_dict({k: v.to(device) for k, v in complete.items()}, assign=True)
    compute_rope(model, device)
    validate_no_params_on_meta_device(model)


def complete_state(
    model: nn.Module, state_dict: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """The checked weights of ``state_dict``, and an adapter that changes nothing yet.

    All are in ``dtype``, or each in that of the model's parameter: a weight that is kept wider than
    others comes straight from the file's.

    Raises:
        ValueError: If a weight is missing, unexpected or of the wrong shape, or the adapter is of
            another kind than :func:`~hf_models.lora_decoder`'s.
    """
    if any(isinstance(module, TorchtunesDoRALinear) for module in model.modules()):
        raise ValueError(
            "model: torchtune's own DoRA layers are not supported, because they scale biases too; "
            "use hf_models.lora_decoder with use_dora: true"
        )
    # By the names of the state dict: those of the modules may have a checkpointing wrapper in them.
    state = model.state_dict()
    adapter = get_adapter_state_dict(state, device=None)
    _check({name: p.shape for name, p in state.items() if name not in adapter}, state_dict)
    weights = {name: t.to(dtype=dtype or state[name].dtype) for name, t in state_dict.items()}
    return weights | {
        name: _start(name, t.shape, dtype or t.dtype, weights) for name, t in adapter.items()
    }


def compute_rope(model: nn.Module, device: torch.device | str) -> None:
    """Fill the rotary caches, which are in no state dict."""
    for module in model.modules():
        rope_init = getattr(module, "rope_init", None)
        if callable(rope_init):
            with torch.device(device):
                rope_init()


def _start(
    name: str, shape: torch.Size, dtype: torch.dtype, weights: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The usual start: A as torch initialises a linear layer, B at 0, DoRA's magnitudes ‖W‖."""
    if name.endswith(".magnitude"):
        return row_norms(weights[f"{name.removesuffix('magnitude')}weight"]).to(dtype)
    if name.endswith("lora_b.weight"):
        return torch.zeros(shape, dtype=dtype)
    if not name.endswith("lora_a.weight"):
        raise ValueError(f"{name}: of the adapters only LoRA is supported")
    return nn.init.kaiming_uniform_(torch.empty(shape, dtype=dtype), a=math.sqrt(5))


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
