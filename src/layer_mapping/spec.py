"""From what a config says about layer mapping to checked pairs of layers."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from layer_mapping.strategies import STRATEGIES, Pair, Strategy, copied, explicit


def resolve(
    spec: str | Sequence[Sequence[int]] | Strategy,
    num_student_layers: int,
    num_teacher_layers: int,
    epoch: int = 0,
) -> list[Pair]:
    """Turn what a config says about layer mapping into checked pairs.

    Args:
        spec: a strategy's name, a list of pairs, or a callable ``(num_student_layers,
            num_teacher_layers)`` with its options already bound (``functools.partial``). A
            callable with an ``epoch`` parameter that is not bound yet is given the epoch.
        num_student_layers: depth of the student.
        num_teacher_layers: depth of the teacher.
        epoch: the current epoch, for strategies that draw anew each epoch.

    Raises:
        ValueError: for an unknown name, another kind of value, or pairs that do not fit the two
            depths.
    """
    strategy = _by_name(spec) if isinstance(spec, str) else spec
    if isinstance(strategy, Sequence):
        return explicit(num_student_layers, num_teacher_layers, strategy)
    if not callable(strategy):
        raise ValueError(
            f"layer_mapping must be one of {', '.join(STRATEGIES)}, a list of [student, teacher] "
            f"pairs, or a _component_, not {spec!r}"
        )
    bound = getattr(strategy, "keywords", {})
    draws_each_epoch = "epoch" in inspect.signature(strategy).parameters and "epoch" not in bound
    options = {"epoch": epoch} if draws_each_epoch else {}
    pairs = strategy(num_student_layers, num_teacher_layers, **options)
    return explicit(num_student_layers, num_teacher_layers, pairs)


def resolve_stacks(
    spec: Any,
    student_depths: Mapping[str, int],
    teacher_depths: Mapping[str, int],
    epoch: int = 0,
) -> dict[str, list[Pair]]:
    """Turn what a config says about layer mapping into checked pairs of each stack.

    Args:
        spec: what `resolve` takes, for models with one stack; or stack → such a spec, where stacks
            that are not named are not matched.
        student_depths: stack → depth of the student's.
        teacher_depths: stack → depth of the teacher's.
        epoch: the current epoch, for strategies that draw anew each epoch.

    Raises:
        ValueError: if a stack is not both models', several are left to one spec, or a spec does
            not fit its stack.
    """
    if not isinstance(spec, Mapping):
        if len(student_depths) > 1:
            raise ValueError(
                f"layer_mapping must say it for each stack: {{{_example(student_depths)}}}"
            )
        spec = dict.fromkeys(student_depths, spec)
    pairs = {}
    for stack, one in spec.items():
        for side, depths in (("student", student_depths), ("teacher", teacher_depths)):
            if stack not in depths:
                raise ValueError(
                    f"layer_mapping: the {side} has no stack {stack!r}; it has {', '.join(depths)}"
                )
        resolved = resolve(one, student_depths[stack], teacher_depths[stack], epoch)
        if resolved:
            pairs[stack] = resolved
    return pairs


def _example(stacks: Mapping[str, int]) -> str:
    return ", ".join(f"{stack}: forward" for stack in stacks)


def _by_name(name: str) -> Strategy:
    if name == copied.__name__:
        raise ValueError(
            "layer_mapping: copied needs to know the layers that the student was copied from, as "
            "students of kd_init_student do"
        )
    if name not in STRATEGIES:
        known = [*STRATEGIES, copied.__name__]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"layer_mapping: no strategy is called {name!r}; did you mean {nearest!r}? "
            f"Valid names: {', '.join(known)}"
        )
    return STRATEGIES[name]
