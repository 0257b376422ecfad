"""A teacher elsewhere that is lost is lost for all ranks, at the same place."""

from collections.abc import Iterator
from itertools import islice
from typing import TypeVar

from kd_teachers import Teacher, TeacherLost
from kd_training.placement.one_device import Placement

T = TypeVar("T")


def fetched(items: Iterator[T], teacher: Teacher | None, placement: Placement) -> Iterator[T]:
    """Each item, which a teacher's answers are fetched for; ranks have equally many.

    Raises:
        TeacherLost: On every rank, if one could not have its answers. So a run may be saved then.
    """
    if teacher is None or not teacher.remote:
        yield from items
        return
    while True:
        found: list[T] = []
        cause = None
        try:
            found = list(islice(items, 1))
        except TeacherLost as err:
            cause = err
        lost = next((one for one in placement.gather(cause and str(cause)) if one), None)
        if lost is not None:
            raise TeacherLost(lost) from cause
        if not found:
            return
        yield found[0]
