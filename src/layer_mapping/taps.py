"""Record what chosen decoder layers put out, for one forward pass at a time."""

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class LayerTaps:
    """The outputs of chosen decoder layers, recorded while the context is open.

    ::

        taps = LayerTaps(model, [3, 7, -1])
        for batch in batches:
            with taps:
                model(batch)
            use(taps.outputs)               # {3: [B, S, D], 7: …, 11: …}
            taps.clear()

    Outside the block the model carries no hooks, and after ``clear()`` (or when the next block
    opens, or when the block ends in an exception) the taps hold no tensor. Layer i is the output
    of decoder layer i, before the model's final norm.

    Works with activation checkpointing (the recompute of the backward pass is not recorded) and
    with layers compiled one by one (``layer.compile()``). The hooks are looked up when the block
    opens, so the model may be wrapped, compiled or sharded after the taps were made.

    Args:
        model: a decoder with ``.layers``, an ``nn.ModuleList``; for transformers, ``model.model``.
        layers: the layers to record; negative indices count from the end.
        truncate: leave out the layers above the deepest recorded one while the block is open,
            for a model whose logits nobody needs. What the model returns is then meaningless.

    Attributes:
        outputs: layer (0-based) → its output [B, S, D] in the newest pass, with its graph.

    Raises:
        ValueError: if the model has no ``.layers``, a layer is out of range, or a chosen layer was
            not run inside the block.
    """

    def __init__(self, model: nn.Module, layers: Iterable[int], truncate: bool = False) -> None:
        num_layers = len(_decoder_layers(model))
        chosen = set()
        for layer in layers:
            if not -num_layers <= layer < num_layers:
                raise ValueError(
                    f"layer {layer} is out of range; the model has {num_layers} layers"
                )
            chosen.add(layer % num_layers)
        self.layers = sorted(chosen)
        self.outputs: dict[int, Tensor] = {}
        self._model = model
        self._truncate = truncate and bool(chosen)
        self._all_layers: nn.ModuleList | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        assert not self._handles, "taps are already open"
        self.clear()
        layers = _decoder_layers(self._model)
        self._handles = [layers[i].register_forward_hook(self._recorder(i)) for i in self.layers]
        self._handles.append(self._model.register_forward_pre_hook(self._start_pass))
        if self._truncate:
            self._all_layers = layers
            self._model.layers = layers[: self.layers[-1] + 1]
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._all_layers is not None:
            self._model.layers = self._all_layers
            self._all_layers = None
        if exc_type is not None:
            self.clear()
            return
        missed = [layer for layer in self.layers if layer not in self.outputs]
        if missed:
            self.clear()
            raise ValueError(
                f"layers {missed} were not recorded: run the model inside the block, and compile "
                "its layers one by one (layer.compile()), not the whole model"
            )

    def clear(self) -> None:
        """Let go of the recorded outputs."""
        self.outputs.clear()

    @torch.compiler.disable
    def _start_pass(self, module: nn.Module, args: Any) -> None:
        self.clear()

    def _recorder(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        # Nothing to compile here, and tracing would specialise on the layer's number.
        @torch.compiler.disable
        def record(module: nn.Module, args: Any, output: Any) -> None:
            # The first run of a pass counts: a recompute in its backward must not replace it.
            self.outputs.setdefault(layer, output[0] if isinstance(output, tuple) else output)

        return record


def _decoder_layers(model: nn.Module) -> nn.ModuleList:
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"{type(model).__name__} has no decoder layers in `.layers`; "
            "pass the decoder itself (for a transformers model, model.model)"
        )
    return layers
