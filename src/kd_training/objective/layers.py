"""The teacher's intermediate layers: matched pairs, one term for each stack that has some."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from omegaconf import OmegaConf

from hf_models import copied_blocks
from hf_models.model import View
from kd_config.components import argument, component, expect, imported, reason
from kd_config.schema import RunConfig
from kd_data import Batch
from kd_data.batch import ENCODER
from kd_teachers import Needs, Signal
from kd_training.objective.parts import Parts
from kd_training.objective.term import Sum, Term
from layer_mapping import LayerMatcher, PairLoss, resolve_stacks
from layer_mapping.strategies import Pair, copied
from layer_mapping.taps import Tap

COPIED = "copied"  # the strategy whose layers the student's directory tells


class LayerTerm(Term):
    """Matched layers of one stack.

    Args:
        name: The term's name.
        stack: The stack that the layers belong to.
        matcher: The pairs and how they are compared.
        pairs_of: Epoch → the pairs that are matched in it.
        scope: The positions that count.
    """

    title = "intermediate layers"
    unit = "distance per token"

    def __init__(
        self,
        name: str,
        stack: str,
        matcher: LayerMatcher,
        pairs_of: Callable[[int], list[Pair]],
        scope: str,
    ) -> None:
        super().__init__(scope, name)
        self.place, self.weighs_as = stack, "ir"
        self.module = self.matcher = matcher
        self._pairs_of = pairs_of

    @property
    def taps(self) -> frozenset[Tap]:  # type: ignore[override]
        """The student's layers of the pairs."""
        return frozenset((self.place, layer) for layer in self.matcher.student_layers)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """The teacher's layers of the pairs."""
        taps = frozenset((self.place, layer) for layer in self.matcher.teacher_layers)
        return Needs(taps=taps)

    def sum(self, student: View, teacher: Signal, batch: Batch) -> Sum:
        """The pairs' weighted sum, and each pair's own."""
        matched = self.matcher(
            self._of_stack(student.taps),
            self._of_stack(teacher.taps),
            batch.scopes[self.scope][self.place],
            batch.documents[self.place],
        )
        return Sum(matched.total, matched.per_pair)

    def _of_stack(self, taps: Mapping[Tap, Any]) -> dict[int, Any]:
        return {layer: output for (stack, layer), output in taps.items() if stack == self.place}

    def start_epoch(self, epoch: int) -> None:
        """Match the layers of this epoch."""
        self.matcher.set_pairs(self._pairs_of(epoch))

    def facts(self) -> list[list[int]]:
        """The pairs."""
        return [list(pair) for pair in self.matcher.pairs]

    def load_facts(self, facts: list[list[int]]) -> None:
        """Match these pairs."""
        self.matcher.set_pairs([(student, teacher) for student, teacher in facts])

    def describe(self) -> str:
        """The pairs in a line."""
        pairs = ", ".join(f"{student}-{teacher}" for student, teacher in self.matcher.pairs)
        where = "" if self.name == "ir" else f" in {self.place}"
        return f"layers matched{where} (student-teacher): {pairs}"


def build(name: str, parts: Parts) -> list[Term]:
    """A term for each stack that ``layer_mapping`` names, all with one weight.

    Together they are the mean over all pairs of each pair's mean over its own stack's positions.

    Raises:
        ValueError: If a pair is out of range or a loss has unusable arguments.
    """
    config = parts.config
    if parts.weights[name] == 0:
        return []
    if config.ir_loss is None:
        raise ValueError(f"config: layer_mapping is {config.layer_mapping}, so ir_loss must be set")
    by_epoch = partial(_pairs, config, parts)
    first = by_epoch(0)
    loss = _pair_loss(config)
    alone = len(parts.student.stacks) == 1
    terms: list[Term] = []
    for stack, pairs in first.items():
        term = LayerTerm(
            name if alone else f"{name}_{stack}",
            stack,
            _matcher(parts, stack, pairs, loss),
            partial(_pairs_of_stack, by_epoch, stack),
            _scope(config, stack),
        )
        term.share = _share(loss.reduction, len(pairs), sum(map(len, first.values())))
        where = "every token" if stack == ENCODER else term.scope
        term.compared = f"teacher's layers, {where}"
        term.loss_key = "ir_loss"
        terms.append(term)
    return terms


def _pairs_of_stack(
    by_epoch: Callable[[int], dict[str, list[Pair]]], stack: str, epoch: int
) -> list[Pair]:
    return by_epoch(epoch).get(stack, [])


def _share(reduction: str, pairs: int, of_all: int) -> float:
    """A stack's part: of a mean over pairs as many as it has, of a sum all of its own."""
    return pairs / of_all if reduction == "mean" else 1.0


def _pair_loss(config: RunConfig) -> PairLoss:
    loss = component(config.ir_loss, "ir_loss")
    kind = "a loss such as layer_mapping.CosineLoss"
    expect(isinstance(loss, PairLoss), config.ir_loss, "ir_loss", kind)
    return loss


def _matcher(parts: Parts, stack: str, pairs: list[Pair], loss: PairLoss) -> LayerMatcher:
    config = parts.config
    widths = parts.student.stacks[stack].width, parts.teacher.stacks[stack].width
    try:
        with parts.device:
            return LayerMatcher(pairs, loss, *widths, projection=config.layer_projection.mode)
    except ValueError as err:
        raise ValueError(f"config: ir_loss, layer_projection: {err}") from err


def _scope(config: RunConfig, stack: str) -> str:
    scope = config.token_scope.ir
    return scope if isinstance(scope, str) else scope.get(stack, "labels")


def _pairs(config: RunConfig, parts: Parts, epoch: int) -> dict[str, list[Pair]]:
    student, teacher = (
        {name: stack.depth for name, stack in side.stacks.items()}
        for side in (parts.student, parts.teacher)
    )
    try:
        spec = _with_copied(config, _bound(config.layer_mapping), list(student))
        return resolve_stacks(spec, student, teacher, epoch)
    except Exception as err:  # a function of the user's may raise anything
        where = "" if str(err).startswith("layer_mapping") else "layer_mapping: "
        raise ValueError(f"config: {where}{reason(err)}") from err


def _with_copied(config: RunConfig, spec: Any, stacks: Sequence[str]) -> Any:
    """The spec with the name ``copied`` replaced by what the student's directory says."""
    by_stack = spec if isinstance(spec, dict) else dict.fromkeys(stacks, spec)
    named = [stack for stack, one in by_stack.items() if one == COPIED]
    if not named:
        return spec
    directory = argument(config.model, "checkpoint_dir")
    if directory is None:
        raise ValueError("copied: model has no checkpoint_dir that could tell its layers")
    origin = copied_blocks(directory)
    found = {stack: partial(copied, layers=origin[stack]) for stack in named if stack in origin}
    return {**by_stack, **found}


def _bound(spec: Any) -> Any:
    """A spec without nodes of a config: a component becomes the function with its options."""
    if OmegaConf.is_config(spec):
        spec = OmegaConf.to_container(spec, resolve=True)
    if not isinstance(spec, dict):
        return spec
    if "_component_" in spec:
        options = dict(spec)
        return partial(imported(options.pop("_component_")), **options)
    return {stack: _bound(one) for stack, one in spec.items()}
