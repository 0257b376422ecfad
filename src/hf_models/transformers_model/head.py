"""How a transformers model makes its logits, and a forward that leaves them out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hf_models.precision import master
from hf_models.transformers_model.lora_state import has_lora
from kd_losses import Head

# Factors of the logits, as configs call them.
_FACTORS: dict[str, Callable[[float], float]] = {
    "logit_scale": lambda factor: factor,  # Cohere
    "logits_scaling": lambda divisor: 1 / divisor,  # Granite
    "lm_head_multiplier": lambda factor: factor,  # Falcon H1
}


def read_head(module: Any, layer: Any) -> Head:
    """The head that a module's layer and config describe; a proof tells whether it is so."""
    lora = has_lora(layer)
    base, adapted = (layer.base_layer, not layer.disable_adapters) if lora else (layer, False)
    weight = master(base)
    if adapted:
        weight = weight + layer.get_delta_weight(layer.active_adapters[0])
    bias = master(base, "bias") if getattr(base, "bias", None) is not None else None
    added = getattr(module, "final_logits_bias", None)  # BART and its kin
    if isinstance(added, Tensor):
        bias = added[0] if bias is None else bias + added[0]
    scale = 1.0
    for name, factor in _FACTORS.items():
        value = getattr(module.config, name, None)
        scale *= 1.0 if value is None else factor(float(value))
    return Head(weight, bias, scale, getattr(module.config, "final_logit_softcapping", None))


class _Unmade:
    """Logits that nobody has made: whatever is done to them, they stay so."""

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> "_Unmade":
        return cls()

    def __getattr__(self, name: str) -> "_Unmade":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def _same(self, *args: Any, **kwargs: Any) -> "_Unmade":
        return self

    __call__ = __getitem__ = __neg__ = _same
    __add__ = __radd__ = __sub__ = __rsub__ = _same
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _same


@contextmanager
def without_head(module: Any, layer: nn.Module, select: bool) -> Iterator[None]:
    """While it lasts, the module's forward returns what its head is applied to.

    Whatever follows the head there, be it a bias, a scale or a cap, finds nothing to work on, so
    that no row of logits is ever made. The forward must be the module's own, because sharding,
    checkpointing and offloading hook into it.

    Args:
        module: A transformers model.
        layer: Its head.
        select: Whether the module picks some of the head's rows, as classifiers that read a text's
            last position do. Then it is to pick hidden states.
    """
    kept: list[Tensor] = []
    forward = module.forward
    own = vars(module).get("forward")

    def pass_on(hidden: Tensor, *_: Any, **__: Any) -> Any:
        if select:
            return hidden
        kept.append(hidden)
        return _Unmade()

    def hidden_states(*args: Any, **kwargs: Any) -> Tensor:
        output = forward(*args, **kwargs)
        return output.logits if select else kept.pop()

    layer.forward = pass_on
    module.forward = hidden_states
    try:
        yield
    finally:
        del layer.forward
        if own is None:
            del module.forward
        else:
            module.forward = own
