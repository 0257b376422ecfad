"""What a model can do for a distillation, whoever has written its layers."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hf_models.layout import Layout
from kd_losses import Head
from layer_mapping import Tap


class View(NamedTuple):
    """One forward.

    Attributes:
        hidden: [B, S, D], what the head is applied to.
        taps: (stack, layer) → that layer's output [B, S, D].
    """

    hidden: Tensor
    taps: dict[Tap, Tensor]


@dataclass(frozen=True)
class Stack:
    """The size of one stack of blocks."""

    depth: int
    width: int


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before its weights.

    Attributes:
        task: What it predicts: ``causal_lm``, ``seq2seq_lm`` or ``sequence_classification``.
        vocabulary: Number of ids that it has embeddings for.
        max_positions: Longest sequence that it takes; None without a limit.
        stacks: Size of each stack, in the order in which they run.
        classes: Number of classes of a classifier; None of a language model.
        pad_id: The token that it takes for padding, if that matters to it.
        decoder_start_id: What an encoder-decoder's targets start from.
        separates_documents: Whether several of them may lie in one row.
        name: What messages call it.
        reads_texts_apart: Whether on a CPU a text's numbers are the same in any company.
    """

    task: str
    vocabulary: int
    max_positions: int | None
    stacks: Mapping[str, Stack]
    classes: int | None = None
    pad_id: int | None = None
    decoder_start_id: int | None = None
    separates_documents: bool = True
    name: str = "the model"
    reads_texts_apart: bool = False

    @property
    def outputs(self) -> int:
        """Number of ids, or classes, among which it predicts."""
        return self.vocabulary if self.classes is None else self.classes


class Merged(NamedTuple):
    """A model's weights without an adapter, and the adapter by itself.

    Attributes:
        weights: All of them, with the adapter merged into them.
        adapter: Its tensors; None without one.
        adapter_config: What a reader must know of it; None without one.
    """

    weights: dict[str, Tensor]
    adapter: dict[str, Tensor] | None
    adapter_config: dict[str, Any] | None


AnyRank = Callable[[bool], bool]


class Sampling(NamedTuple):
    """How the next token is chosen.

    Attributes:
        max_new_tokens: The longest completion, its end token included.
        temperature: Logits are divided by it; 0 takes the most probable token.
        top_k: Only the k most probable tokens are drawn from; 0: all.
        top_p: Only the most probable ones that together have this probability are.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Model(Protocol):
    """A student or a teacher.

    Attributes:
        module: Its layers, as the optimizer, the placement and checkpoints see them.
        facts: Its sizes.
    """

    module: nn.Module
    facts: ModelFacts

    @property
    def layout(self) -> Layout:
        """How a directory keeps its weights."""

    def view(
        self, inputs: Mapping[str, Tensor], taps: Collection[Tap] = (), logits: bool = True
    ) -> View:
        """One forward up to what the head is applied to.

        Args:
            inputs: The model's own keyword arguments, as a batch's ``inputs`` has them.
            taps: Layers whose outputs are wanted.
            logits: Whether ``hidden`` is needed. Without, what lies above the taps need not run,
                and ``hidden`` is meaningless.
        """

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Its own logits [B, S, V], whole: for a proof on a few positions."""

    def head(self) -> Head:
        """How ``hidden`` becomes logits; differentiable in what is trained of it."""

    def stacks(self) -> dict[str, nn.ModuleList]:
        """The blocks, by stack: what taps, sharding, checkpointing, compiling walk over."""

    def head_modules(self) -> list[nn.Module]:
        """The modules that hold the head's weights, which is read outside of a forward."""

    def train_adapter(self) -> bool:
        """Leave its adapter trainable and nothing else; False, and all as it is, without one."""

    def without_adapter(self) -> AbstractContextManager[None]:
        """While it lasts, the model is what it was before its adapter: forward and head."""

    def complete_state(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All that its state dict holds, each in its parameter's dtype.

        Args:
            weights: What a directory's weights were read as: all but the adapter, which starts such
                that it changes nothing.

        Raises:
            ValueError: If a weight is missing, unexpected or of the wrong shape.
        """

    def fill_buffers(self, device: torch.device | str) -> None:
        """Put there what no state dict holds."""

    def merged(self, state: Mapping[str, Tensor] | None = None) -> Merged:
        """What is exported, on the CPU; the live model is not changed.

        Args:
            state: Its full state where it does not hold that itself, because it is sharded.
        """

    def generate(
        self,
        prompts: list[Tensor],
        sampling: Sampling,
        stop_ids: Collection[int],
        seeds: list[int] | None = None,
        any_rank: AnyRank | None = None,
    ) -> list[Tensor]:
        """A completion of each prompt, up to and with its first stop token.

        Args:
            prompts: Token ids [L_i] of each, of any lengths.
            sampling: How tokens are chosen.
            stop_ids: Tokens that end a completion.
            seeds: Of each completion: with one seed a prompt's completion is the same in any batch.
            any_rank: Whether a thing holds on any rank, where no rank can run a block alone: all
                run theirs until the last has its completions.
        """
