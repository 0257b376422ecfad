"""What a model can do for a distillation, whoever has written its layers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

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
    """

    task: str
    vocabulary: int
    max_positions: int | None
    stacks: Mapping[str, Stack]


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

    def head(self) -> Head:
        """How ``hidden`` becomes logits; differentiable in what is trained of it."""

    def stacks(self) -> dict[str, nn.ModuleList]:
        """The blocks, by stack: what taps, sharding, checkpointing, compiling walk over."""

    def head_modules(self) -> list[nn.Module]:
        """The modules that hold the head's weights, which is read outside of a forward."""

    def generate(
        self,
        prompts: list[Tensor],
        sampling: Sampling,
        stop_ids: Collection[int],
        seeds: list[int] | None = None,
    ) -> list[Tensor]:
        """A completion of each prompt, up to and with its first stop token.

        Args:
            prompts: Token ids [L_i] of each, of any lengths.
            sampling: How tokens are chosen.
            stop_ids: Tokens that end a completion.
            seeds: Of each completion: with one seed a prompt's completion is the same in any batch.
        """
