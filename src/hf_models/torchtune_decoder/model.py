"""A torchtune decoder as a model to distil with."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchtune.modules.peft import disable_adapter, get_adapter_params, set_trainable_params

from hf_models.model import AnyRank, Merged, ModelFacts, Sampling, Stack, View
from hf_models.torchtune_decoder.attention_mask import with_mask
from hf_models.torchtune_decoder.generate import generate
from hf_models.torchtune_decoder.layout import DecoderLayout
from hf_models.torchtune_decoder.loading import complete_state, compute_rope
from hf_models.torchtune_decoder.lora import head_weight, merged_state_dict
from hf_models.torchtune_decoder.unpadded import TextRow, applies, attend_by_text
from kd_losses import Head
from layer_mapping import LayerTaps, Tap

STACK = "decoder"


class DecoderModel:
    """A decoder of our builders or torchtune's; see the protocol `hf_models.model.Model`.

    Args:
        module: The decoder, on any device.
    """

    layout = DecoderLayout()

    def __init__(self, module: Any) -> None:
        self.module = module
        attend_by_text(module)
        embeddings = module.tok_embeddings
        self.facts = ModelFacts(
            task="causal_lm",
            vocabulary=embeddings.num_embeddings,
            max_positions=module.max_seq_len,
            stacks={STACK: Stack(len(module.layers), embeddings.embedding_dim)},
            reads_texts_apart=True,
        )

    def view(
        self, inputs: Mapping[str, Tensor], taps: Collection[Tap] = (), logits: bool = True
    ) -> View:
        """The final norm's output, and the tapped layers'.

        Args:
            inputs: ``tokens`` [B, S]; for packed rows also ``input_pos`` and ``documents`` [B, S],
                for others ``lengths`` [B], behind which what is read has no meaning.
            taps: ``("decoder", layer)``.
            logits: Whether the hidden states are needed; without, layers above the taps stay out.
        """
        texts = TextRow.of(inputs) if applies(self.module, inputs) else None
        given = with_mask(inputs) if texts is None else texts.inputs(inputs["tokens"])
        tokens = given.pop("tokens")
        recorder = LayerTaps(self.module, taps, truncate=not logits, stacks=self.stacks)
        with recorder, _without_head(self.module, 0 if texts is None else tokens.shape[1]):
            hidden = self.module(tokens, **given)
        outputs = dict(recorder.outputs)
        recorder.clear()
        if texts is None:
            return View(hidden, outputs)
        return View(texts.back(hidden), {tap: texts.back(one) for tap, one in outputs.items()})

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """See the protocol."""
        given = with_mask(inputs)
        return self.module(given.pop("tokens"), **given)

    def head(self) -> Head:
        """The output layer's weight, LoRA included."""
        return Head(head_weight(self.module))

    def stacks(self) -> dict[str, nn.ModuleList]:
        """Its only stack."""
        return {STACK: self.module.layers}

    def head_modules(self) -> list[nn.Module]:
        """The decoder, which gathers its head, and the embeddings that the head may be tied to."""
        tied = getattr(self.module.output, "tied_module", None)
        return [self.module] if tied is None else [self.module, tied]

    def train_adapter(self) -> bool:
        """See the protocol; adapters are those of torchtune."""
        adapter = get_adapter_params(self.module)
        if adapter:
            set_trainable_params(self.module, adapter)
        return bool(adapter)

    def without_adapter(self) -> AbstractContextManager[None]:
        """See the protocol."""
        return disable_adapter(self.module)

    def complete_state(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See the protocol."""
        return complete_state(self.module, weights)

    def fill_buffers(self, device: torch.device | str) -> None:
        """Compute the rotary caches."""
        compute_rope(self.module, device)

    def merged(self, state: Mapping[str, Tensor] | None = None) -> Merged:
        """See the protocol."""
        return Merged(*merged_state_dict(self.module, state))

    @torch.no_grad()
    def generate(
        self,
        prompts: list[Tensor],
        sampling: Sampling,
        stop_ids: Collection[int],
        seeds: list[int] | None = None,
        any_rank: AnyRank | None = None,
    ) -> list[Tensor]:
        """See the protocol; the adapter takes part, dropout does not.

        Raises:
            ValueError: If a prompt is empty, or does not fit with its completion.
        """
        was_training = self.module.training
        self.module.eval()
        try:
            with _without_head(self.module):
                return generate(
                    self.module, self.head, prompts, sampling, stop_ids, seeds, any_rank
                )
        finally:
            self.module.train(was_training)


@contextmanager
def _without_head(module: Any, length: int = 0) -> Iterator[None]:
    """While it lasts, the decoder's forward ends with its final norm.

    A row of so many tokens may be longer than a text may be: several stand in it.

    What reads the hidden states applies the head itself, a few rows at a time. The forward must be
    the module's own, because sharding, checkpointing and offloading hook into it.
    """
    norm = module.norm

    def stop_at_norm(hidden: Tensor) -> Tensor:
        return norm(hidden)

    limit = module.max_seq_len
    module.unembed = stop_at_norm
    module.max_seq_len = max(limit, length)
    try:
        yield
    finally:
        del module.unembed
        module.max_seq_len = limit
