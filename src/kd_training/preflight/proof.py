"""A model's head and blocks are what we take them for: proved on a few tokens, never believed."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hf_models.model import Model
from kd_data import Batch

_EXACT = 1e-5  # of the largest logit, in fp32
_ROUNDINGS = 4  # of narrower types
_SAME, _SAME_ROUNDINGS = 1e-4, 16  # the same for hidden states that went through all blocks
_SAMPLES, _POSITIONS = 2, 8
_OF_TARGETS = ("tokens", "input_pos", "documents", "decoder_input_ids")


@torch.no_grad()
def check_models(student: Model, teachers: Mapping[str, Model], batch: Batch) -> None:
    """Prove all models on the beginning of a batch.

    Args:
        student: With its weights.
        teachers: Those in memory with their weights, by their key of the config.
        batch: On the models' device.

    Raises:
        ValueError: See `prove`; the message names the model's key.
    """
    models = {"model": (student, batch.inputs)}
    models |= {key: (teacher, batch.teacher_inputs()) for key, teacher in teachers.items()}
    for key, (model, inputs) in models.items():
        was_training = model.module.training
        model.module.eval()
        try:
            with torch.compiler.set_stance("force_eager"):
                prove(model, _few(model, inputs))
        except ValueError as err:
            raise ValueError(f"config: {key}: {model.facts.name} cannot be used: {err}") from err
        finally:
            model.module.train(was_training)


def prove(model: Model, inputs: Mapping[str, Tensor]) -> None:
    """Compare what we do with a model with what it does by itself.

    Args:
        model: In eval mode.
        inputs: Of a few positions, as logits are made of all of them.

    Raises:
        ValueError: If its own logits are not its head on its hidden states, its blocks do not run
            once each in their order or do not lead to the hidden states, or a causal model's
            earlier positions see later ones.
    """
    hidden = model.view(inputs).hidden
    _check_head(model, hidden, inputs)
    for stack, blocks in model.stacks().items():
        _check_blocks(model, stack, blocks, hidden, inputs)
    if model.facts.task == "causal_lm":
        _check_causal(model, hidden, inputs)
    if "documents" in inputs:
        _check_documents(model, inputs["tokens"])


def _few(model: Model, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Without their lengths: rows are read to their ends.
    few = {name: one[:_SAMPLES] for name, one in inputs.items() if name != "lengths"}
    if model.facts.classes is not None:
        return few  # a text must be whole: its end may be what is read
    return {k: t[:, :_POSITIONS] if k in _OF_TARGETS else t for k, t in few.items()}


def _check_head(model: Model, hidden: Tensor, inputs: Mapping[str, Tensor]) -> None:
    own = model.logits(inputs)
    ours = model.head().logits(hidden)
    if own.shape != ours.shape:
        raise ValueError(
            f"its own logits are {list(own.shape)}, but its head on its hidden states gives "
            f"{list(ours.shape)}"
        )
    difference = (own.float() - ours.float()).abs().max().item()
    allowed = max(_EXACT, _ROUNDINGS * torch.finfo(own.dtype).eps if own.dtype.itemsize < 4 else 0)
    if not difference <= allowed * max(1.0, own.float().abs().max().item()):
        raise ValueError(
            f"its own logits differ by {difference:.2g} from its head (weight, bias, scale and cap "
            "as its config has them) on its hidden states"
        )


def _check_blocks(
    model: Model, stack: str, blocks: nn.ModuleList, hidden: Tensor, inputs: Mapping[str, Tensor]
) -> None:
    order: list[int] = []
    with ExitStack() as hooks:
        for number, block in enumerate(blocks):
            hook = block.register_forward_hook(lambda *_, n=number: order.append(n))
            hooks.callback(hook.remove)
        hooks.callback(blocks[-1].register_forward_hook(_disturb).remove)
        disturbed = model.view(inputs).hidden
    if order != list(range(len(blocks))):
        raise ValueError(f"the blocks of its {stack} do not run once each, in their order: {order}")
    if torch.equal(disturbed, hidden):
        raise ValueError(f"the last block of its {stack} does not lead to its hidden states")


def _disturb(module: nn.Module, args: Any, output: Any) -> Any:
    """Another output: not shifted nor scaled, as a norm would undo that."""
    if isinstance(output, tuple):
        return (_disturb(module, args, output[0]), *output[1:])
    return output.roll(1, dims=-1)


def _check_causal(model: Model, hidden: Tensor, inputs: Mapping[str, Tensor]) -> None:
    tokens = inputs["tokens"]
    if tokens.shape[1] < 2:
        return
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % model.facts.vocabulary
    again = model.view({**inputs, "tokens": changed}).hidden
    if not _same(again[:, :-1], hidden[:, :-1]):
        raise ValueError("its earlier positions see later tokens: it is no causal language model")


def _check_documents(model: Model, tokens: Tensor) -> None:
    """Two documents in one row give what each gives by itself."""
    half = tokens.shape[1] // 2
    if half == 0:
        return
    row = tokens[:, : 2 * half]
    place = torch.arange(2 * half, device=row.device).expand_as(row)
    packed = {"tokens": row, "input_pos": place % half, "documents": place // half}
    together = model.view(packed).hidden[:, half:]
    if not _same(together, model.view({"tokens": row[:, half:]}).hidden):
        raise ValueError(
            "it does not keep the documents of a packed row apart; leave packed out of the dataset"
        )


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Equal up to rounding, as rows of other products round otherwise."""
    difference = (ours.float() - theirs.float()).abs().max()
    allowed = max(_SAME, _SAME_ROUNDINGS * torch.finfo(ours.dtype).eps)
    return bool(difference <= allowed * theirs.float().abs().max())
