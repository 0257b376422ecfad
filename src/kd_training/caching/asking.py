"""Who is asked, what, and about which texts, before a weight is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchtune import training

from hf_models.model import Model
from kd_config.components import argument
from kd_config.schema import RunConfig
from kd_config.weights import loss_weights
from kd_data import Batch
from kd_data.loaders import collate_with
from kd_data.samples import alone, build_dataset, build_tokenizer
from kd_teachers import Needs, Teacher
from kd_teachers.store.contents import NONE
from kd_teachers.store.documents import Document
from kd_teachers.store.manifest import Manifest
from kd_training import build
from kd_training.build_data import prompt_of
from kd_training.build_teacher import Asked, build_asked
from kd_training.caching.contents import contents_of
from kd_training.identity import identity_of
from kd_training.objective.parts import Parts
from kd_training.objective.registry import build_terms
from kd_training.placement.one_device import Placement
from kd_training.preflight import estimates, same_model
from kd_training.preflight.same_task import check_same_task
from kd_training.preflight.teacher_prompt import check_room, check_teacher_prompt
from kd_training.preflight.two_tokenizers import check_two_tokenizers

_LEAST_POSITIONS = 2048  # that are read together


@dataclass(frozen=True)
class Asking:
    """Who is asked, what, and about which samples.

    Attributes:
        teacher: Who.
        model: The model that answers, on the meta device until it is loaded.
        student: The student that it is to be loaded with, where it is its base; else None.
        needs: What of its answers.
        datasets: Samples in the teacher's tokens, by the config's key.
        to_batch: Makes a batch of them.
        positions: At most so many are read together.
    """

    teacher: Teacher
    model: Model
    student: tuple[Model, Any] | None
    needs: Needs
    datasets: Mapping[str, Any]
    to_batch: Callable[[Sequence[Any]], Batch]
    positions: int

    def load(self, placement: Placement) -> None:
        """Read the weights."""
        if self.student is not None:
            placement.place(*self.student)
        self.teacher.load(placement)

    def batch(self, documents: Sequence[Document]) -> Batch:
        """What the teacher reads of some documents."""
        names = list(self.datasets)
        origins = (one.origin for one in documents)
        samples = [alone(self.datasets[names[d]][sample])[number] for d, sample, number in origins]
        return self.to_batch(samples)


def prepare_asking(config: RunConfig, placement: Placement) -> tuple[Asking, Manifest]:
    """Check everything that can be checked without reading a weight.

    Returns:
        Who is asked, and the manifest of what is to be kept, without parts.

    Raises:
        ValueError: If the config, the models or the data do not fit.
        OSError: If a file is missing or unreadable.
    """
    training.set_seed(config.seed)
    dtype = training.get_dtype(config.dtype, device=placement.device)
    student = build.build_student(config, dtype)
    asked = build_asked(config, student, dtype)
    ignore = build.ignore_index(config)
    weights = loss_weights(config)
    parts = Parts(config, weights, student.facts, lambda: asked.teacher, placement.device, ignore)
    needs = _needs(config, parts)
    contents = contents_of(config, needs, asked.model, student.facts.outputs, dtype)
    tokenizer = _tokenizer(config, student, asked)
    facts = asked.model.facts
    datasets = {
        key: build_dataset(node, tokenizer, key, ignore, facts)
        for key, node in (("dataset", config.dataset), ("dataset_val", config.dataset_val))
        if node is not None
    }
    to_batch: Callable[[Sequence[Any]], Batch] = collate_with(facts, tokenizer, None, ignore)
    length = argument(config.tokenizer, "max_seq_len") or 0
    prompt = prompt_of(config, tokenizer, ignore)
    if prompt is not None:
        check_room(config, prompt, {asked.key: facts})
        to_batch, length = prompt.teachers_batches(to_batch), length + len(prompt.ids)
    asking = Asking(
        asked.teacher,
        asked.model,
        asked.student,
        Needs(contents.logits != NONE, needs.taps),
        datasets,
        to_batch,
        max(_LEAST_POSITIONS, config.batch_size * length),
    )
    identity, head = identity_of(config, *asked.nodes, placement), asked.model.head()
    manifest = Manifest(
        identity=identity, facts=facts, contents=contents, scale=head.scale, softcap=head.softcap
    )
    return asking, manifest


def _tokenizer(config: RunConfig, student: Model, asked: Asked) -> Any:
    """What the teacher's tokens are made with, seen to belong to it."""
    facts = {asked.key: asked.model.facts}
    check_same_task(config, student.facts, facts)
    check_teacher_prompt(config, student.facts)
    estimates.check_length(config, student.facts, facts)
    same_model.check_model_configs(config, asked.teacher.members())
    own = build_tokenizer(config.tokenizer, "tokenizer")
    theirs = build_tokenizer(config.teacher_tokenizer, "teacher_tokenizer")
    same_model.check_tokenizers(config, student.facts, facts, own, theirs)
    return own if theirs is None else theirs


def _needs(config: RunConfig, parts: Parts) -> Needs:
    """What the terms ask in any epoch: a mapping may draw other layers in each."""
    terms = build_terms(parts)
    check_two_tokenizers(parts, terms)
    needs = Needs()
    for epoch in range(config.epochs):
        for term in terms:
            term.start_epoch(epoch)
            needs = needs | term.needs
    return needs
