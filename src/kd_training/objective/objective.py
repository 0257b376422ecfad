"""The objective of a micro-batch: weighted terms on one forward of student and teacher.

Shapes: B batch, S positions, N = B·S, D width, T terms.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import or_
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_models.model import Model, View
from kd_data import Batch
from kd_losses import Projected, Scoped, chunked_sums
from kd_teachers import Needs, Signal, Teacher
from kd_training.objective.term import Term


class Sums(NamedTuple):
    """A micro-batch's contribution to an optimizer step.

    Attributes:
        total: Σ weight·sum/divisor over the terms; the only value with a gradient.
        parts: The terms' plain sums over positions, float64 [T].
        details: Further sums by ``<term>/<name>``, such as those of matched pairs.
    """

    total: Tensor
    parts: Tensor
    details: dict[str, Tensor]


class Objective:
    """Runs student and teacher on a micro-batch and sums the terms of the loss.

    Every term is a sum over the positions in its own scope. The caller adds up ``counts`` over the
    micro-batches (and ranks) of one optimizer step and hands the result back as ``divisors``, so
    each term is divided by its global count exactly once, before backward.

    Args:
        student: What learns.
        teacher: Who is asked; None where no term has a question.
        terms: The parts, in the order of the log.
        weights: The weight of each key that a term weighs as; may be set anew between calls.
        ignore_index: The label of positions without a target.
        num_chunks: Number of chunks to project a micro-batch in; None: chosen by size.
    """

    def __init__(
        self,
        student: Model,
        teacher: Teacher | None,
        terms: Sequence[Term],
        weights: Mapping[str, float],
        ignore_index: int = -100,
        num_chunks: int | None = None,
    ) -> None:
        self.student, self.teacher, self.terms = student, teacher, list(terms)
        self.weights = dict(weights)
        for term in terms:
            if term.observed:
                self.weights.pop(term.name, None)
        self.ignore_index, self._num_chunks = ignore_index, num_chunks
        own = {term.name: term.module for term in terms if term.module is not None}
        self.modules = nn.ModuleDict(own)

    def with_terms(self, terms: Sequence[Term]) -> "Objective":
        """Other terms of the same models, all of weight 1 that have one."""
        weights = {term.weighs_as: 1.0 for term in terms if term.weighs_as is not None}
        return Objective(
            self.student, self.teacher, terms, weights, self.ignore_index, self._num_chunks
        )

    @property
    def needs(self) -> Needs:
        """What the terms ask of the teacher."""
        return reduce(or_, (term.needs for term in self.terms), Needs())

    def read_ahead(self, to_batch: Callable[..., Batch]) -> Callable[..., Batch]:
        """``to_batch``, with what can be fetched early of the teacher's answers."""
        if self.teacher is None:
            return to_batch
        return partial(_with_answers, self.teacher, to_batch)

    def weight(self, term: Term) -> float:
        """The term's weight; 0 of what is only observed."""
        return 0.0 if term.weighs_as is None else self.weights[term.weighs_as] * term.share

    def counts(self, batch: Batch) -> Tensor:
        """Number of positions in each term's scope, float64 [T]."""
        return torch.stack([_mask(term, batch).sum() for term in self.terms]).double()

    def __call__(self, batch: Batch, divisors: Tensor) -> Sums:
        """One micro-batch's sums; the total weights each and divides it by ``divisors`` [T]."""
        inverse = (1 / divisors.clamp(min=1)).tolist()
        pairs = zip(self.terms, inverse, strict=True)
        factors = {term: self.weight(term) * one for term, one in pairs}
        taps = frozenset().union(*(term.taps for term in self.terms))
        student, teacher = self.student.view(batch.inputs, taps), Signal(None, {})
        needs = self.needs
        if self.teacher is not None and needs:
            teacher = self.teacher.signal(batch, needs)
        total, parts, details = self._on_logits(student, teacher, batch, factors)
        for term in (one for one in self.terms if one.rows is None):
            one = term.sum(student, teacher, batch)
            total = total + factors[term] * one.value
            parts[term] = one.value.detach()
            details |= {f"{term.name}/{name}": value for name, value in one.details.items()}
        return Sums(total, torch.stack([parts[term].double() for term in self.terms]), details)

    def _on_logits(
        self, student: View, teacher: Signal, batch: Batch, factors: Mapping[Term, float]
    ) -> tuple[Tensor, dict[Term, Tensor], dict[str, Tensor]]:
        """The total and the sums of the terms that share the chunked pass, and further ones."""
        labels = batch.labels.flatten()
        scoped = {
            term: Scoped(rows, _mask(term, batch).flatten(), factors[term])
            for term in self.terms
            if (rows := term.rows) is not None
        }
        own = Projected(student.hidden.flatten(0, 1), self.student.head())
        size = -(-labels.numel() // self._num_chunks) if self._num_chunks else None
        sums = chunked_sums(
            own,
            teacher.rows,
            labels,
            list(scoped.values()),
            ignore_index=self.ignore_index,
            chunk_size=size,
        )
        values = dict(zip(scoped, sums.sums, strict=True))
        return sums.total, values, self._by_teacher(own, teacher, labels, scoped, size)

    @torch.no_grad()
    def _by_teacher(
        self,
        student: Projected,
        teacher: Signal,
        labels: Tensor,
        scoped: Mapping[Term, Scoped],
        size: int | None,
    ) -> dict[str, Tensor]:
        """What each of several teachers alone would say to the terms that ask one.

        Its sum is over the rows that it teaches, its mean over all of the term's.
        """
        asking = {term: one for term, one in scoped.items() if one.term.needs_teacher}
        found: dict[str, Tensor] = {}
        for name, (rows, taught) in teacher.named.items() if asking else ():
            own = [one._replace(mask=one.mask & taught) for one in asking.values()]
            sums = chunked_sums(
                student, rows, labels, own, ignore_index=self.ignore_index, chunk_size=size
            )
            found |= {f"{t.name}/{name}": v for t, v in zip(asking, sums.sums, strict=True)}
        return found

    def means(
        self, sums: list[Sums], counts: Tensor, over_ranks: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Each term's mean over its ``counts`` [T] positions, their weighted total first."""
        own = torch.stack([one.parts for one in sums]).sum(0)
        counts = counts.to(own.device)
        means = (over_ranks(own) / counts.clamp(min=1)).tolist()
        known = zip(self.terms, means, counts.tolist(), strict=True)
        # Nothing is said of labels where the student has written all of them.
        values = {t.name: mean for t, mean, count in known if count or t.on_written}
        total = sum(self.weight(t) * values[t.name] for t in self.terms if t.name in values)
        values = {"total": total, **values, **self._together(values)}
        names = list(sums[0].details)
        if names:
            details = torch.stack([torch.stack([one.details[n] for n in names]) for one in sums])
            of_term = {term.name: count for term, count in zip(self.terms, counts, strict=True)}
            divisors = torch.stack([of_term[name.partition("/")[0]] for name in names])
            summed = over_ranks(details.sum(0))
            detail_means = summed / divisors.clamp(min=1).to(summed.dtype)
            values |= dict(zip(names, detail_means.tolist(), strict=True))
        return values

    def _together(self, values: Mapping[str, float]) -> dict[str, float]:
        """What terms come to that have one weight together and none of its name."""
        found: dict[str, float] = {}
        for term in self.terms:
            if term.weighs_as not in (None, *values) and term.name in values:
                assert term.weighs_as is not None
                own = term.share * values[term.name]
                found[term.weighs_as] = found.get(term.weighs_as, 0.0) + own
        return found

    def start_epoch(self, epoch: int) -> None:
        """Tell the terms."""
        for term in self.terms:
            term.start_epoch(epoch)

    def facts(self) -> dict[str, object]:
        """What a resumed run must know of the terms."""
        return {term.name: term.facts() for term in self.terms}

    def load_facts(self, facts: Mapping[str, object]) -> None:
        """Go on from `facts`."""
        for term in self.terms:
            term.load_facts(facts[term.name])


def _mask(term: Term, batch: Batch) -> Tensor:
    """The positions that a term counts."""
    mask = batch.scopes[term.scope][term.place]
    return mask if term.on_written or not batch.written else torch.zeros_like(mask)


def _with_answers(teacher: Teacher, to_batch: Callable[..., Batch], samples: object) -> Batch:
    return teacher.read_ahead(to_batch(samples))
