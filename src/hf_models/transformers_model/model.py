"""A transformers model as a model to distil with."""

import inspect
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_models.loading import Ties
from hf_models.model import AnyRank, Merged, Sampling, View
from hf_models.transformers_model.facts import CLASSIFICATION, facts_of, new_modules
from hf_models.transformers_model.head import read_head, without_head
from hf_models.transformers_model.layout import TransformersLayout
from hf_models.transformers_model.lora_state import (
    has_lora,
    is_adapter,
    merge,
    peft_tensors,
    plain_name,
    start,
)
from hf_models.transformers_model.stacks import find_head, find_stacks
from kd_losses import Head
from layer_mapping import LayerTaps, Tap

# Padding comes last, where a causal model's other positions do not see it.
logging.getLogger("transformers.modeling_utils").addFilter(
    lambda record: "passing in an `attention_mask`" not in record.getMessage()
)


class TransformersModel:
    """A model of any Auto class; see the protocol `hf_models.model.Model`.

    Args:
        module: It, as transformers builds it, on any device.
        task: What it predicts.

    Attributes:
        stack_paths: Stack → where the module has its blocks.
        head_path: Where it has the layer that makes logits.
        new_modules: A classifier's own modules, above the model that reads the text.
        adapter: PEFT's config of its LoRA; None without.

    Raises:
        ValueError: If the module has not the blocks and the head that its config describes.
    """

    def __init__(self, module: Any, task: str) -> None:
        self.module = module
        self.adapter: Any = None  # peft's LoraConfig
        self.stack_paths = find_stacks(module, task)
        self.facts = facts_of(module, task, self.stack_paths)
        self.head_path = find_head(module, task, self.facts.outputs)
        self.new_modules = new_modules(module) if task == CLASSIFICATION else []
        self._takes = set(inspect.signature(module.forward).parameters)
        self.layout = TransformersLayout(
            type(module), module.config, self.stack_paths, self.new_modules
        )
        self._ties = Ties(module)

    def view(
        self, inputs: Mapping[str, Tensor], taps: Collection[Tap] = (), logits: bool = True
    ) -> View:
        """See the protocol; of a classifier ``hidden`` [B, 1, D] is its last layer's input."""
        layer = self.module.get_submodule(self.head_path)
        recorder = LayerTaps(self.module, taps, truncate=not logits, stacks=self.stacks)
        with recorder, without_head(self.module, layer, select=self._classifies):
            hidden = self.module(**self._arguments(inputs))
        outputs = dict(recorder.outputs)
        recorder.clear()
        return View(hidden.unsqueeze(1) if self._classifies else hidden, outputs)

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """See the protocol."""
        logits = self.module(**self._arguments(inputs)).logits
        return logits.unsqueeze(1) if self._classifies else logits

    def head(self) -> Head:
        """The last layer's weight with what its config says of scale and cap, LoRA included."""
        return read_head(self.module, self.module.get_submodule(self.head_path))

    def stacks(self) -> dict[str, nn.ModuleList]:
        """See the protocol."""
        found: Any = {name: self.module.get_submodule(p) for name, p in self.stack_paths.items()}
        return found

    def head_modules(self) -> list[nn.Module]:
        """The module, which gathers its head, and the head."""
        return [self.module, self.module.get_submodule(self.head_path)]

    def train_adapter(self) -> bool:
        """See the protocol; a classifier's own modules are trained with its adapter."""
        if self.adapter is None:
            return False
        whole = tuple(f"{name}." for name in self.new_modules)
        for name, parameter in self.module.named_parameters():
            trained = is_adapter(name) or (bool(whole) and name.startswith(whole))
            parameter.requires_grad_(trained)
        return True

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """See the protocol."""
        layers: list[Any] = [module for module in self.module.modules() if has_lora(module)]
        trained = [p for p in self.module.parameters() if p.requires_grad]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            for parameter in trained:  # PEFT has frozen them
                parameter.requires_grad_(True)

    def complete_state(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See the protocol; LoRA's A starts from torch's global random numbers."""
        state = self.module.state_dict()
        known = {plain_name(name): t for name, t in state.items() if not is_adapter(name)}
        tied = {other: first for first, *others in self._ties.groups for other in others}
        complete = {}
        for name, kept in state.items():
            if is_adapter(name):
                complete[name] = start(name, kept.shape, kept.dtype)
                continue
            plain = plain_name(name)
            found = weights.get(plain, weights.get(tied.get(plain, plain)))
            complete[name] = _checked(plain, kept, found)
        for name in weights:
            if name not in known:
                raise ValueError(f"weight {name} of the checkpoint has no place in the model")
        return complete

    def fill_buffers(self, device: torch.device | str) -> None:
        """Move them; they were made with the model."""
        for module in self.module.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)

    def merged(self, state: Mapping[str, Tensor] | None = None) -> Merged:
        """See the protocol; what is tied is there once."""
        full = {n: t.detach() for n, t in (state or self.module.state_dict()).items()}
        weights = merge(self.module, full)
        weights = {name: t.cpu() for name, t in weights.items() if name not in self._ties.again}
        if self.adapter is None:
            return Merged(weights, None, None)
        tensors = {n: t.cpu() for n, t in peft_tensors(full, self.new_modules).items()}
        return Merged(weights, tensors, self.adapter.to_dict())

    @torch.no_grad()
    def generate(
        self,
        prompts: list[Tensor],
        sampling: Sampling,
        stop_ids: Collection[int],
        seeds: list[int] | None = None,
        any_rank: AnyRank | None = None,
    ) -> list[Tensor]:
        """See the protocol, by transformers' own ``generate``; of an encoder-decoder the prompt is
        what the encoder reads.

        Raises:
            ValueError: If a prompt is empty or does not fit, or the model is a classifier.
        """
        # All of transformers' generation, which training needs none of.
        from hf_models.transformers_model.generate import generate

        was_training = self.module.training
        self.module.eval()
        try:
            # transformers asks all ranks itself.
            together = any_rank is not None
            return generate(self.module, self.facts, prompts, sampling, stop_ids, seeds, together)
        finally:
            self.module.train(was_training)

    @property
    def _classifies(self) -> bool:
        return self.facts.task == CLASSIFICATION

    def _arguments(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """The module's own keyword arguments.

        Of a causal model padding comes last, where no other position sees it. Documents in one row
        are told apart by their positions, which begin anew.
        """
        names = {"tokens": "input_ids", "input_pos": "position_ids"}
        given: dict[str, Any] = {names.get(name, name): one for name, one in inputs.items()}
        given.pop("documents", None)
        given.pop("lengths", None)
        if "token_type_ids" not in self._takes:
            given.pop("token_type_ids", None)
        return given | ({"use_cache": False} if "use_cache" in self._takes else {})


def _checked(name: str, kept: Tensor, found: Tensor | None) -> Tensor:
    if found is None:
        if kept.is_meta:
            raise ValueError(f"weight {name} of the model is not in the checkpoint")
        return kept  # a buffer that was made with the model
    if found.shape != kept.shape:
        raise ValueError(
            f"weight {name} has shape {list(found.shape)} in the checkpoint, "
            f"but {list(kept.shape)} in the model"
        )
    return found.to(kept.dtype)
