"""The objective of a micro-batch: labels, the teacher's distribution, and its intermediate layers.

Shapes: B batch, S positions, N = B·S, D width, V vocabulary, P parts.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_models import head_weight
from hf_models.torchtune_decoder.attention_mask import with_mask
from kd_config.schema import Scales
from kd_data.two_tokenizers import at_student_positions, of_teacher
from kd_losses import KDLoss, LinearKDLoss
from layer_mapping import LayerMatcher, LayerTaps
from layer_mapping.strategies import Pair

PARTS = ("ce", "kd", "ir", "prompt_kd")


class Sums(NamedTuple):
    """A micro-batch's contribution to an optimizer step.

    Attributes:
        total: Σ weight·sum/divisor over the parts; the only value with a gradient.
        parts: The parts' plain sums over positions, shape [P], in the order of ``PARTS``.
        pairs: The sum of each matched pair, keyed ``s<student>-t<teacher>``.
    """

    total: Tensor
    parts: Tensor
    pairs: dict[str, Tensor]


class Objective:
    """Runs student and teacher on a micro-batch and sums the parts of the loss.

    Every part is a sum over the positions in its own scope. The caller adds up ``counts`` over the
    micro-batches (and ranks) of one optimizer step and hands the result back as ``divisors``, so
    each part is divided by its global count exactly once, before backward.

    Args:
        student: Decoder that learns.
        teacher: Frozen decoder; None where no part needs it.
        weights: Weight of ce, kd and ir. A part of weight 0 costs nothing.
        kd_loss: Divergence for the positions of ``kd_scope``; its ``ignore_index`` marks the
            labels that do not count.
        matcher: Pairs of layers and their loss; None without layer matching.
        kd_scope: The divergence's positions: ``labels``, ``all``, or ``matched`` where student and
            teacher have tokens of their own.
        ir_scope: ``labels`` or ``all``, for layer matching.
        prompt_kd_loss: Divergence for the real positions without a label, weighted like kd.
        num_chunks: Number of chunks to project a micro-batch in; None: chosen by size.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        weights: Scales,
        kd_loss: KDLoss,
        matcher: LayerMatcher | None = None,
        *,
        kd_scope: str = "labels",
        ir_scope: str = "labels",
        prompt_kd_loss: KDLoss | None = None,
        num_chunks: int | None = None,
    ) -> None:
        self.student, self.teacher, self.weights, self.matcher = student, teacher, weights, matcher
        self.scopes = {"ce": "labels", "kd": kd_scope, "ir": ir_scope, "prompt_kd": "prompt"}
        self.num_chunks, self.ignore_index = num_chunks, kd_loss.ignore_index
        self._linear = LinearKDLoss(kd_loss, weights.ce, weights.kd)
        self._prompt = prompt_kd_loss and LinearKDLoss(prompt_kd_loss, 0.0, weights.kd)
        self._tap_layers()
        for model in filter(None, (student, teacher)):
            _stop_at_final_norm(model)

    def set_pairs(self, pairs: list[Pair]) -> None:
        """Match other layers from now on; the student's layers must stay the same."""
        if self.matcher is not None:
            self.matcher.set_pairs(pairs)
            self._tap_layers()

    def _tap_layers(self) -> None:
        self._student_taps = self._teacher_taps = None
        if self.matcher is not None:
            assert self.teacher is not None
            # Without a divergence nobody needs the teacher's logits, nor the layers above the taps.
            logits = self.weights.kd > 0
            self._student_taps = LayerTaps(self.student, self.matcher.student_layers)
            self._teacher_taps = LayerTaps(
                self.teacher, self.matcher.teacher_layers, truncate=not logits
            )

    def active(self) -> list[str]:
        """The parts that have a weight, in the order of ``PARTS``."""
        return [part for part in PARTS if self._weight(part) > 0]

    def _weight(self, part: str) -> float:
        if part == "prompt_kd":
            return self.weights.kd if self._prompt is not None else 0.0
        return getattr(self.weights, part)

    def counts(self, batch: dict[str, Tensor]) -> Tensor:
        """Number of positions in each part's scope, float64 [P]."""
        masks = self._masks(batch)
        return torch.stack([masks[self.scopes[part]].sum() for part in PARTS]).double()

    def means(
        self, sums: list[Sums], counts: Tensor, over_ranks: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Each active part's mean over its ``counts`` [P] positions, their weighted total first."""
        own = torch.stack([one.parts for one in sums]).sum(0)
        counts = counts.to(own.device)
        parts = over_ranks(own) / counts.clamp(min=1)
        mean = dict(zip(PARTS, parts.tolist(), strict=True))
        values = {part: mean[part] for part in self.active()}
        values = {"total": sum(self._weight(part) * values[part] for part in values), **values}
        names = list(sums[0].pairs)
        if names:
            pairs = torch.stack([torch.stack([one.pairs[n] for n in names]) for one in sums]).sum(0)
            pair_means = over_ranks(pairs) / counts[PARTS.index("ir")].clamp(min=1)
            values |= {f"ir/{n}": v for n, v in zip(names, pair_means.tolist(), strict=True)}
        return values

    def __call__(self, batch: dict[str, Tensor], divisors: Tensor) -> Sums:
        """One micro-batch's sums; the total weights each and divides it by ``divisors`` [P]."""
        masks = self._masks(batch)
        batch = with_mask(batch)
        scale = dict(zip(PARTS, (1 / divisors.clamp(min=1)).tolist(), strict=True))
        student_hidden, student_taps = _run(self.student, self._student_taps, batch)
        teacher_hidden: Tensor | None = None
        teacher_taps: dict[int, Tensor] = {}
        if self.teacher is not None:
            with torch.no_grad():
                teacher_hidden, teacher_taps = _run(
                    self.teacher, self._teacher_taps, of_teacher(batch)
                )
                teacher_hidden = at_student_positions(teacher_hidden, batch)

        heads = self._heads(student_hidden, teacher_hidden)
        total, parts = self._logit_parts(heads, batch["labels"].flatten(), masks, scale)
        pairs: dict[str, Tensor] = {}
        if self.matcher is not None:
            mask = masks[self.scopes["ir"]]
            matched = self.matcher(student_taps, teacher_taps, mask, batch["documents"])
            total = total + self.weights.ir * scale["ir"] * matched.total
            parts["ir"], pairs = matched.total.detach(), matched.per_pair
        zero = total.new_zeros(())
        stacked = torch.stack([parts.get(part, zero).double() for part in PARTS])
        return Sums(total, stacked, pairs)

    def _heads(self, student_hidden: Tensor, teacher_hidden: Tensor | None) -> dict[str, Any]:
        """What both chunked passes project: hidden states [N, D] and heads [V, D]."""
        heads = {
            "student_hidden": student_hidden.flatten(0, 1),
            "student_head": head_weight(self.student),
            "teacher_hidden": None,
            "teacher_head": None,
        }
        if self.teacher is not None and teacher_hidden is not None and self.weights.kd > 0:
            heads["teacher_hidden"] = teacher_hidden.flatten(0, 1)
            heads["teacher_head"] = head_weight(self.teacher)
        return heads

    def _logit_parts(
        self,
        heads: dict[str, Any],
        labels: Tensor,
        masks: dict[str, Tensor],
        scale: dict[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        chunk_size = -(-labels.numel() // self.num_chunks) if self.num_chunks else None
        self._linear.chunk_size = chunk_size
        self._linear.ce_weight = self.weights.ce * scale["ce"]
        self._linear.kd_weight = self.weights.kd * scale["kd"]
        sums = self._linear(**heads, labels=labels, kd_mask=masks[self.scopes["kd"]].flatten())
        total, parts = sums.total, {"ce": sums.ce.detach(), "kd": sums.kd.detach()}
        if self._prompt is not None:
            self._prompt.chunk_size = chunk_size
            self._prompt.kd_weight = self.weights.kd * scale["prompt_kd"]
            no_labels = torch.full_like(labels, self.ignore_index)
            prompt = self._prompt(**heads, labels=no_labels, kd_mask=masks["prompt"].flatten())
            total, parts["prompt_kd"] = total + prompt.total, prompt.kd.detach()
        return total, parts

    def _masks(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        labelled = batch["labels"] != self.ignore_index
        masks = {"labels": labelled, "all": batch["valid"], "prompt": batch["valid"] & ~labelled}
        return masks | {"matched": batch["matched"]} if "matched" in batch else masks


def _run(
    model: nn.Module, taps: LayerTaps | None, batch: dict[str, Any]
) -> tuple[Tensor, dict[int, Tensor]]:
    """The normed hidden states [B, S, D] and the tapped layers' outputs."""
    with taps or nullcontext():
        hidden = model(batch["tokens"], mask=batch.get("mask"), input_pos=batch.get("input_pos"))
    if taps is None:
        return hidden, {}
    outputs = dict(taps.outputs)
    taps.clear()
    return hidden, outputs


def _stop_at_final_norm(model: Any) -> None:
    """Make ``model(tokens)`` return hidden states: the chunked pass applies the head itself.

    Set on the instance, so that the state dict and everybody else's decoders stay as they are.
    """
    model.unembed = lambda hidden: model.norm(hidden)
