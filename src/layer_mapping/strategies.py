"""Which student layer learns from which teacher layer.

A strategy is a function ``(num_student_layers, num_teacher_layers, **options)`` that returns
``(student, teacher)`` pairs of 0-based layer indices; layer i stands for the output of decoder
layer i. ``forward``, ``reverse`` and ``random`` order the same evenly spaced teacher layers
differently, so that comparing them compares the order alone.

Source: Yu, Wen, Mou, "Revisiting Intermediate-Layer Matching in Knowledge Distillation:
Layer-Selection Strategy Doesn't Matter (Much)", https://arxiv.org/abs/2502.04499.
"""

from collections.abc import Callable, Sequence
from random import Random

Pair = tuple[int, int]
Strategy = Callable[..., list[Pair]]


def forward(num_student_layers: int, num_teacher_layers: int) -> list[Pair]:
    """Pair student layer j with the j-th of the evenly spaced teacher layers.

    T_j = round((j + 1) · L_t / L_s) − 1, halves rounded up: 12 → 3 layers gives 3, 7, 11.

    Raises:
        ValueError: if a depth is below 1 or the student is deeper than the teacher.
    """
    return list(enumerate(_evenly_spaced(num_student_layers, num_teacher_layers)))


def reverse(num_student_layers: int, num_teacher_layers: int) -> list[Pair]:
    """Pair student layer j with T_{L_s − 1 − j}: the first student layer learns from the last.

    Raises:
        ValueError: if a depth is below 1 or the student is deeper than the teacher.
    """
    return list(enumerate(_evenly_spaced(num_student_layers, num_teacher_layers)[::-1]))


def all_to_one(
    num_student_layers: int, num_teacher_layers: int, *, layer: int | None = None
) -> list[Pair]:
    """Pair every student layer with one teacher layer.

    Args:
        num_student_layers: depth of the student; it may exceed the teacher's.
        num_teacher_layers: depth of the teacher.
        layer: the teacher layer; negative counts from the end. Default: the middle layer,
            L_t // 2 − 1 (layer 0 of a one-layer teacher).

    Raises:
        ValueError: if a depth is below 1 or ``layer`` is out of range.
    """
    _check_depths(num_student_layers, num_teacher_layers)
    if layer is None:
        layer = max(num_teacher_layers // 2 - 1, 0)
    pairs = [(student, layer) for student in range(num_student_layers)]
    return explicit(num_student_layers, num_teacher_layers, pairs)


def random(num_student_layers: int, num_teacher_layers: int, *, seed: int = 0) -> list[Pair]:
    """Pair the student layers with the evenly spaced teacher layers in one shuffled order.

    The order depends on ``seed`` alone, so it is fixed for the whole run and kept on resume.

    Raises:
        ValueError: if a depth is below 1 or the student is deeper than the teacher.
    """
    teacher_layers = _evenly_spaced(num_student_layers, num_teacher_layers)
    Random(seed).shuffle(teacher_layers)
    return list(enumerate(teacher_layers))


def in_order_random(
    num_student_layers: int, num_teacher_layers: int, *, seed: int = 0, epoch: int = 0
) -> list[Pair]:
    """Pair the student layers, in order, with a sorted random choice of all teacher layers.

    The choice depends on ``seed`` and ``epoch`` alone: every epoch draws anew, and a resumed
    epoch draws the same again.

    Raises:
        ValueError: if a depth is below 1 or the student is deeper than the teacher.

    Source: Haidar et al., "RAIL-KD: RAndom Intermediate Layer Mapping for Knowledge
    Distillation".
    """
    _check_not_deeper(num_student_layers, num_teacher_layers)
    # A string seed keeps (seed, epoch) = (0, 1) and (1, 0) apart.
    generator = Random(f"{seed}/{epoch}")
    return list(enumerate(sorted(generator.sample(range(num_teacher_layers), num_student_layers))))


def last(num_student_layers: int, num_teacher_layers: int) -> list[Pair]:
    """Pair the last student layer with the last teacher layer, and nothing else.

    Raises:
        ValueError: if a depth is below 1.
    """
    _check_depths(num_student_layers, num_teacher_layers)
    return [(num_student_layers - 1, num_teacher_layers - 1)]


def none(num_student_layers: int, num_teacher_layers: int) -> list[Pair]:
    """Pair nothing: no layer matching.

    Raises:
        ValueError: if a depth is below 1.
    """
    _check_depths(num_student_layers, num_teacher_layers)
    return []


def copied(
    num_student_layers: int, num_teacher_layers: int, *, layers: Sequence[int]
) -> list[Pair]:
    """Pair each student layer with the teacher layer that it was copied from.

    Args:
        num_student_layers: depth of the student.
        num_teacher_layers: depth of the teacher.
        layers: the teacher layer of each student layer. In a config the name ``copied`` suffices:
            a student that kd_init_student has made knows its own.

    Raises:
        ValueError: if ``layers`` are not one for each student layer, or out of range.
    """
    if len(layers) != num_student_layers:
        raise ValueError(
            f"the student has {num_student_layers} layers, but {len(layers)} were copied: it is "
            "not the one that kd_init_student made"
        )
    return explicit(num_student_layers, num_teacher_layers, list(enumerate(layers)))


STRATEGIES: dict[str, Strategy] = {
    strategy.__name__: strategy
    for strategy in (forward, reverse, all_to_one, random, in_order_random, last, none)
}


def explicit(
    num_student_layers: int, num_teacher_layers: int, pairs: Sequence[Sequence[int]]
) -> list[Pair]:
    """Check a list of pairs and make its negative indices 0-based; the order is kept.

    A student layer may appear with several teacher layers, and the other way round: each pair is
    a term of its own, and a pair listed twice counts twice. An empty list means no matching.

    Raises:
        ValueError: if a depth is below 1, an entry is not two integers, or a layer is out of range.
    """
    _check_depths(num_student_layers, num_teacher_layers)
    resolved = []
    for pair in pairs:
        if (
            not isinstance(pair, Sequence)
            or len(pair) != 2
            or not all(type(layer) is int for layer in pair)
        ):
            raise ValueError(
                f"layer_mapping: {pair!r} is not a pair of integers [student, teacher]"
            )
        student = _from_start(pair[0], num_student_layers, "student", pair)
        teacher = _from_start(pair[1], num_teacher_layers, "teacher", pair)
        resolved.append((student, teacher))
    return resolved


def _evenly_spaced(num_student_layers: int, num_teacher_layers: int) -> list[int]:
    _check_not_deeper(num_student_layers, num_teacher_layers)
    # Integers only: floats would round some halves down, and round() rounds halves to even.
    return [
        (2 * (j + 1) * num_teacher_layers + num_student_layers) // (2 * num_student_layers) - 1
        for j in range(num_student_layers)
    ]


def _check_depths(num_student_layers: int, num_teacher_layers: int) -> None:
    if num_student_layers < 1 or num_teacher_layers < 1:
        raise ValueError(
            "layer_mapping: both models need at least one layer, "
            f"not {num_student_layers} (student) and {num_teacher_layers} (teacher)"
        )


def _check_not_deeper(num_student_layers: int, num_teacher_layers: int) -> None:
    _check_depths(num_student_layers, num_teacher_layers)
    if num_student_layers > num_teacher_layers:
        raise ValueError(
            f"layer_mapping: the student has {num_student_layers} layers, more than the teacher's "
            f"{num_teacher_layers}; list the pairs instead, e.g. layer_mapping: [[-1, -1]]"
        )


def _from_start(layer: int, num_layers: int, model: str, pair: Sequence[int]) -> int:
    if not -num_layers <= layer < num_layers:
        raise ValueError(
            f"layer_mapping: {model} layer {layer} of pair {list(pair)} is out of range; "
            f"the {model} has {num_layers} layers (0 to {num_layers - 1}, negative from the end)"
        )
    return layer % num_layers
