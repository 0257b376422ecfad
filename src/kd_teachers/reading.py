"""How a teacher reads documents such that each gets the same bits in whatever company it comes.

On a CPU a document's numbers depend, in their last digits, on where vector registers begin in it:
on its place in a packed row, and on the row's length where that is no multiple of their width. So a
document is read from its own beginning, in rows that are padded to such a multiple. Then what was
kept of one reading is what another gives, bit for bit. (With several threads a product of few rows,
some 200, may be cut otherwise, and differs in its last digit.) A GPU promises nothing of that kind,
and reads rows as they come.

Shapes: B rows, S positions, L a document's length, D width.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from hf_models.model import Model, ModelFacts, View
from kd_teachers.signal import Needs

UNIT = 16  # fp32 numbers of the widest vector registers
_LEAST_FULL = 0.75  # documents below one another fill their rows at least so far


def read(model: Model, inputs: Mapping[str, Tensor], needs: Needs) -> View:
    """One view of ``inputs``, whose hidden states and taps lie at the positions of the inputs.

    Args:
        model: The teacher, in eval mode.
        inputs: As a batch's ``inputs``.
        needs: What of it is needed.
    """
    device = next(iter(inputs.values())).device
    if device.type != "cpu" or model.facts.reads_texts_apart:
        return model.view(inputs, needs.taps, logits=needs.distribution)
    if "documents" in inputs:
        return _apart(model, inputs["tokens"], inputs["documents"], needs)
    inputs = {name: tensor for name, tensor in inputs.items() if name != "lengths"}
    lengths = {name: tensor.shape[1] for name, tensor in inputs.items()}
    view = model.view(
        {name: _padded(name, tensor, model.facts) for name, tensor in inputs.items()},
        needs.taps,
        logits=needs.distribution,
    )
    # The stack that reads what: a target's positions are the decoder's, a source's the encoder's.
    source = lengths.get("tokens", lengths.get("input_ids", 0))
    target = lengths.get("decoder_input_ids", source)
    hidden = view.hidden if model.facts.classes is not None else view.hidden[:, :target]
    taps = {
        tap: output[:, : target if tap[0] == "decoder" else source]
        for tap, output in view.taps.items()
    }
    return View(hidden, taps)


def _padded(name: str, tensor: Tensor, facts: ModelFacts) -> Tensor:
    """Padded on the right, with what no earlier position sees, or what a mask hides."""
    length = -(-tensor.shape[1] // UNIT) * UNIT
    if facts.max_positions is not None:
        length = max(min(length, facts.max_positions), tensor.shape[1])
    # Some classifiers look for the last token that is no padding.
    value = facts.pad_id or 0 if name == "input_ids" else 0
    return pad(tensor, (0, length - tensor.shape[1]), value=value)


def _apart(model: Model, tokens: Tensor, documents: Tensor, needs: Needs) -> View:
    """The documents of packed rows, each read by itself."""
    flat, owners = tokens.flatten(), documents.flatten()
    found: dict[str, Tensor] = {}
    taps: dict[tuple[str, int], Tensor] = {}
    for places in _groups(owners):
        alone = pad_sequence([flat[place] for place in places], batch_first=True)
        view = read(model, {"tokens": alone}, needs)
        named = {"hidden": view.hidden} if needs.distribution else {}
        for place, row in zip(places, range(len(places)), strict=True):
            for name, output in named.items():
                _room(found, name, output, owners)[place] = output[row, : len(place)]
            for tap, output in view.taps.items():
                _room(taps, tap, output, owners)[place] = output[row, : len(place)]
    shape = (*tokens.shape, -1)
    hidden = found["hidden"].view(shape) if found else tokens.new_empty(0)
    return View(hidden, {tap: output.view(shape) for tap, output in taps.items()})


def _room(found: dict, name: object, like: Tensor, owners: Tensor) -> Tensor:
    if name not in found:
        found[name] = like.new_zeros(len(owners), like.shape[-1])
    return found[name]


def _groups(owners: Tensor) -> Iterator[list[Tensor]]:
    """Documents of similar length, as the positions of each, the longest first."""
    lengths = torch.bincount(owners[owners >= 0])
    positions = (owners >= 0).nonzero().squeeze(-1).split(lengths.tolist())
    group: list[Tensor] = []
    for place in sorted(positions, key=len, reverse=True):
        if group and len(place) < _LEAST_FULL * len(group[0]):
            yield group
            group = []
        group.append(place)
    if group:
        yield group
