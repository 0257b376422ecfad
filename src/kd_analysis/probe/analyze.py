"""Teacher and students on the same texts: angles between layers, overlap of their logits.

Shapes: B samples, S positions, N labelled positions, L layers, D width, V vocabulary.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX
from tqdm import tqdm

from kd_analysis.open_model import open_model
from kd_analysis.probe import layer_angles, logit_overlap
from kd_analysis.probe.layer_angles import Angles
from kd_analysis.probe.logit_overlap import KS, Overlap
from kd_data import Batch, collate
from kd_losses.functional import cut_to_shared

_CHUNK = 256  # tokens whose layers and logits are compared at a time


def analyze(
    teacher_dir: str | Path,
    students: Mapping[str, str | Path],
    dataset: Dataset,
    pad_id: int,
    output_dir: str | Path,
    *,
    num_samples: int = 32,
    batch_size: int = 2,
    unit_length: bool = True,
    device: str | torch.device = "cpu",
    dtype: str = "fp32",
) -> dict[str, Any]:
    """Write ``layer_angles`` and ``logit_overlap``, each ``.png`` and ``.json``.

    Labelled positions count. Angles seen from a student need its width to be the teacher's.

    Args:
        teacher_dir: The teacher's directory.
        students: Name -> directory.
        dataset: torchtune dataset of tokenised samples.
        pad_id: Token to pad with.
        output_dir: Folder to write into.
        num_samples: The first so many samples are used.
        batch_size: Samples at a time.
        unit_length: Compare layers at unit length, as cosine losses do; false: as they are.
        device: Where the models run.
        dtype: Their dtype, ``fp32`` or ``bf16``.

    Returns:
        What the two JSON files hold, by their names.

    Raises:
        ValueError: If there is nothing to compare, or a model cannot be used.
        OSError: If a file is missing or cannot be written.
    """
    if not students or num_samples < 1:
        raise ValueError("analysis: needs at least one student and num_samples of at least 1")
    device = torch.device(device)
    samples = Subset(dataset, range(min(num_samples, len(dataset))))  # type: ignore[arg-type]
    loader = DataLoader(samples, batch_size, collate_fn=partial(collate, pad_id=pad_id))
    teacher = _Model(teacher_dir, device, dtype)
    models = {name: _Model(directory, device, dtype) for name, directory in students.items()}
    comparison = _Comparison(teacher, models, unit_length)
    for batch in tqdm(loader, desc="analyze", dynamic_ncols=True):
        comparison.update(batch.to(device))
    return comparison.write(Path(output_dir), num_samples=len(samples))


class _Model:
    """A frozen causal model that gives its hidden states and the outputs of all its layers."""

    def __init__(self, directory: str | Path, device: torch.device, dtype: str) -> None:
        self.model = open_model(directory, "causal_lm", device, dtype)
        self.head = self.model.head()
        (self.stack, sizes), *_ = self.model.facts.stacks.items()
        self.num_layers, self.width = sizes.depth, sizes.width

    @torch.no_grad()
    def run(self, batch: Batch, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Normed hidden states [N, D] and layers' outputs [N, L, D] of the chosen positions."""
        taps = [(self.stack, layer) for layer in range(self.num_layers)]
        view = self.model.view(batch.inputs, taps)
        layers = [view.taps[tap][chosen] for tap in taps]
        return view.hidden[chosen], torch.stack(layers, dim=1)


class _Comparison:
    """What the batches add up to."""

    def __init__(self, teacher: _Model, students: dict[str, _Model], unit_length: bool) -> None:
        self._teacher, self._students, self._unit_length = teacher, students, unit_length
        self._angles = self._new_angles()
        self._from_students = {
            name: [self._new_angles() for _ in range(student.num_layers)]
            for name, student in students.items()
            if student.width == teacher.width
        }
        sizes = [len(model.head.weight) for model in (teacher, *students.values())]
        self._overlaps = {name: Overlap([k for k in KS if k <= min(sizes)]) for name in students}

    def _new_angles(self) -> Angles:
        return Angles(self._teacher.num_layers, self._teacher.head.weight.device)

    def update(self, batch: Batch) -> None:
        """Count the labelled positions of one more batch."""
        chosen = batch.labels != CROSS_ENTROPY_IGNORE_IDX
        hidden, layers = self._teacher.run(batch, chosen)
        layers = self._scaled(layers)
        for points in layers.split(_CHUNK):
            self._angles.update(points)
        for name, student in self._students.items():
            student_hidden, student_layers = student.run(batch, chosen)
            pairs = zip(student_hidden.split(_CHUNK), hidden.split(_CHUNK), strict=True)
            for ours, theirs in pairs:
                own, other = student.head.logits(ours), self._teacher.head.logits(theirs)
                logits = cut_to_shared(own, other)
                self._overlaps[name].update(*logits)
            origins = self._scaled(student_layers)
            for i, angles in enumerate(self._from_students.get(name, [])):
                both = zip(layers.split(_CHUNK), origins[:, i].split(_CHUNK), strict=True)
                for points, origin in both:
                    angles.update(points, origin)

    def _scaled(self, layers: Tensor) -> Tensor:
        return F.normalize(layers.float(), dim=-1) if self._unit_length else layers

    def write(self, output_dir: Path, num_samples: int) -> dict[str, Any]:
        """Write pictures and numbers."""
        num_tokens = next(iter(self._overlaps.values())).num_tokens
        if num_tokens == 0:
            raise ValueError(f"analysis: none of the {num_samples} samples has a label")
        output_dir.mkdir(parents=True, exist_ok=True)
        facts = {"num_samples": num_samples, "num_tokens": num_tokens}
        angles = {"unit_length": self._unit_length}
        angles |= layer_angles.summary(self._angles, self._from_students)
        results = {
            "layer_angles": facts | angles,
            "logit_overlap": facts | logit_overlap.summary(self._overlaps),
        }
        for name, content in results.items():
            text = json.dumps(content, indent=2)
            (output_dir / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        layer_angles.plot(self._angles, self._from_students, output_dir / "layer_angles.png")
        logit_overlap.plot(self._overlaps, output_dir / "logit_overlap.png")
        return results
