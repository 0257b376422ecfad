"""Record what chosen layers put out, for one forward pass at a time."""

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Tap = tuple[str, int]  # (stack, layer), such as ("decoder", 3)
Stacks = Mapping[str, nn.ModuleList]
_ONLY = ""  # the stack of a model that has one


class LayerTaps:
    """The outputs of chosen layers, recorded while the context is open.

    ::

        taps = LayerTaps(model, [3, 7, -1])
        for batch in batches:
            with taps:
                model(batch)
            use(taps.outputs)               # {3: [B, S, D], 7: …, 11: …}
            taps.clear()

    Outside the block the model carries no hooks, and after ``clear()`` (or when the next block
    opens, or when the block ends in an exception) the taps hold no tensor. Layer i is the output
    of block i, before the stack's final norm.

    A model with several stacks is given as ``stacks``, and its layers are ``(stack, layer)``::

        LayerTaps(model, [("encoder", -1), ("decoder", 3)], stacks=find_stacks)

    Works with activation checkpointing (the recompute of the backward pass is not recorded) and
    with layers compiled one by one (``layer.compile()``). Hooks and stacks are looked up when the
    block opens, so the model may be wrapped, compiled or sharded after the taps were made.

    Args:
        model: what is run inside the block; without ``stacks`` a decoder with ``.layers``, an
            ``nn.ModuleList``; for transformers, ``model.model``.
        layers: the layers to record; negative indices count from the end.
        truncate: leave out the last stack's layers above its deepest recorded one while the block
            is open, for a model whose logits nobody needs. What the model returns is then
            meaningless.
        stacks: gives the model's blocks by stack, in the order in which they run.

    Attributes:
        outputs: layer, or (stack, layer) → its output [B, S, D] in the newest pass, with its graph.

    Raises:
        ValueError: if the model has no ``.layers``, a layer or stack does not exist, or a chosen
            layer was not run inside the block.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[int | Tap],
        truncate: bool = False,
        stacks: Callable[[], Stacks] | None = None,
    ) -> None:
        self._model, self._one_stack = model, stacks is None
        self._stacks = stacks or (lambda: {_ONLY: _decoder_layers(model)})
        sizes = {name: len(blocks) for name, blocks in self._stacks().items()}
        self.taps = sorted({_found(layer, sizes) for layer in layers})
        self.outputs: dict[Any, Tensor] = {}
        self._truncate = truncate and bool(self.taps)
        self._cut: tuple[nn.ModuleList, list[nn.Module]] | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def layers(self) -> list[int]:
        """The recorded layers of the only stack, sorted."""
        return [layer for _, layer in self.taps]

    def __enter__(self) -> Self:
        assert not self._handles, "taps are already open"
        self.clear()
        stacks = self._stacks()
        self._handles = [
            stacks[stack][layer].register_forward_hook(self._recorder(self._key((stack, layer))))
            for stack, layer in self.taps
        ]
        self._handles.append(self._model.register_forward_pre_hook(self._start_pass))
        if self._truncate:
            self._shorten(*list(stacks.items())[-1])
        return self

    def _shorten(self, stack: str, blocks: nn.ModuleList) -> None:
        # In place: which attribute of the model holds the list is the model's affair.
        kept = 1 + max((layer for name, layer in self.taps if name == stack), default=0)
        self._cut = blocks, list(blocks[kept:])
        del blocks[kept:]

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._cut is not None:
            blocks, rest = self._cut
            blocks.extend(rest)
            self._cut = None
        if exc_type is not None:
            self.clear()
            return
        missed = [self._key(tap) for tap in self.taps if self._key(tap) not in self.outputs]
        if missed:
            self.clear()
            raise ValueError(
                f"layers {missed} were not recorded: run the model inside the block, and compile "
                "its layers one by one (layer.compile()), not the whole model"
            )

    def clear(self) -> None:
        """Let go of the recorded outputs."""
        self.outputs.clear()

    def _key(self, tap: Tap) -> int | Tap:
        return tap[1] if self._one_stack else tap

    @torch.compiler.disable
    def _start_pass(self, module: nn.Module, args: Any) -> None:
        self.clear()

    def _recorder(self, key: int | Tap) -> Callable[[nn.Module, Any, Any], None]:
        # Nothing to compile here, and tracing would specialise on the layer's number.
        @torch.compiler.disable
        def record(module: nn.Module, args: Any, output: Any) -> None:
            # The first run of a pass counts: a recompute in its backward must not replace it.
            self.outputs.setdefault(key, output[0] if isinstance(output, tuple) else output)

        return record


def _found(layer: int | Tap, sizes: Mapping[str, int]) -> Tap:
    """The tap with a layer that counts from the start."""
    stack, number = (_ONLY, layer) if isinstance(layer, int) else layer
    if stack not in sizes:
        raise ValueError(f"stack {stack!r} does not exist; the model has {', '.join(sizes)}")
    if not -sizes[stack] <= number < sizes[stack]:
        where = f" of {stack}" if stack else ""
        raise ValueError(
            f"layer {number}{where} is out of range; the model has {sizes[stack]} layers"
        )
    return stack, number % sizes[stack]


def _decoder_layers(model: nn.Module) -> nn.ModuleList:
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"{type(model).__name__} has no decoder layers in `.layers`; "
            "pass the decoder itself (for a transformers model, model.model)"
        )
    return layers
