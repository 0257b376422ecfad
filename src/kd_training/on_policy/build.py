"""From the config's ``on_policy`` to who writes, what ends a text, and what is measured of it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch.utils.data import Subset

from hf_models import HFCheckpointer
from hf_models.ends import end_tokens
from hf_models.model import Sampling
from kd_config.components import argument, component, expect
from kd_config.schema import RunConfig
from kd_config.sections import OnPolicy
from kd_data import Batch
from kd_data.loaders import val_loader
from kd_training.build_data import prompt_of
from kd_training.objective.objective import Objective
from kd_training.on_policy.measure import OwnTextMeasure
from kd_training.on_policy.source import Completed
from kd_training.on_policy.watch import Watch
from kd_training.on_policy.writer import OwnGenerator, Writer
from kd_training.placement.one_device import Placement


class Ends(NamedTuple):
    """What ends a text.

    Attributes:
        ids: All tokens that do.
        notes: What a person should know of them.
    """

    ids: frozenset[int]
    notes: list[str]


def find_ends(config: RunConfig, objective: Objective, tokenizer: Any, checkpointer: Any) -> Ends:
    """The end tokens of student and teachers; if they differ, the exported student knows all.

    Raises:
        OSError, ValueError: If a directory cannot be read.
    """
    directory = argument(config.model, "checkpoint_dir")
    own = end_tokens(directory) if directory else frozenset({tokenizer.eos_id} - {None})
    members = {} if objective.teacher is None else objective.teacher.members()
    theirs: frozenset[int] = frozenset()
    for member in members.values():
        theirs |= end_tokens(member.directory) if member.directory else frozenset()
    both = own | theirs
    if not both:
        limit = "every text is as long as on_policy.max_new_tokens allows"
        return Ends(both, [f"no file of student or teacher names an end token: {limit}"])
    if not theirs or own == theirs:
        return Ends(both, [])
    notes = [
        f"the student ends a text with {_words(own, tokenizer)}, the teacher with "
        f"{_words(theirs, tokenizer)}: any of them ends what the student writes, and the exported "
        "student's generation_config.json names all"
    ]
    if isinstance(checkpointer, HFCheckpointer):
        checkpointer.end_tokens = both
    return Ends(both, notes)


def _words(ids: frozenset[int], tokenizer: Any) -> str:
    named = [f"{tokenizer.decode([one])!r} ({one})" for one in sorted(ids)]
    return " or ".join(named) or "nothing"


class Writing(NamedTuple):
    """What is needed to put the student's text in place of the data's.

    Attributes:
        settings: The config's section.
        completed: Does it.
        watch: Looks at it.
    """

    settings: OnPolicy
    completed: Completed
    watch: Watch


def build_writing(
    config: RunConfig,
    placement: Placement,
    seed: int,
    objective: Objective,
    tokenizer: Any,
    ends: Ends,
    to_batch: Callable[[Sequence[Any]], Batch],
    ignore: int,
) -> Writing:
    """Who writes, as ``on_policy`` says.

    Raises:
        ValueError: If the generator cannot be built.
    """
    settings = config.on_policy
    assert settings is not None
    student = objective.student
    generator: Any = OwnGenerator(student, placement, settings.gather_weights)
    if settings.generator is not None:
        key = "on_policy.generator"
        generator = component(settings.generator, key, student, placement)
        expect(callable(generator), settings.generator, key, "a Generator of kd_training.on_policy")
    prompt = prompt_of(config, tokenizer, ignore)
    writer = Writer(
        generator=generator,
        placement=placement,
        sampling=Sampling(
            settings.max_new_tokens, settings.temperature, settings.top_k, settings.top_p
        ),
        stop_ids=ends.ids,
        room=_room(objective, 0 if prompt is None else len(prompt.ids)),
        apart=student.facts.task == "seq2seq_lm",
        seed=seed,
        batch_size=settings.batch_size,
    )
    answered = objective.read_ahead(lambda batch: batch)
    completed = Completed(
        writer, to_batch, answered, settings.prompt_tokens, settings.num_completions, ignore
    )
    watch = Watch(placement, tokenizer, settings.log_texts_every_n_steps, settings.log_texts)
    return Writing(settings, completed, watch)


def _room(objective: Objective, offset: int) -> int | None:
    """The longest text that the student takes, and its teachers behind so many further tokens."""
    student = objective.student.facts.max_positions
    members = {} if objective.teacher is None else objective.teacher.members()
    theirs = [one.facts.max_positions for one in members.values()] or [student]
    limits = [student, *(None if one is None else one - offset for one in theirs)]
    return min((one for one in limits if one is not None), default=None)


def build_measure(
    config: RunConfig, writing: Writing, objective: Objective, dataset: Any, placement: Placement
) -> OwnTextMeasure | None:
    """The divergence on held-out prompts' completions; None where none is to be measured.

    Raises:
        ValueError: If the teacher cannot answer it.
    """
    number = min(writing.settings.val_prompts, len(dataset))
    if number == 0:
        return None
    batch_size = config.batch_size_val or config.batch_size
    prompts = Subset(dataset, range(number))
    loader = val_loader(prompts, batch_size, placement, writing.completed.to_batch)
    return OwnTextMeasure(objective, writing.completed, loader, placement)
