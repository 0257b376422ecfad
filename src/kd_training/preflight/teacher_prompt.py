"""What goes together with a prompt that only the teacher reads."""

from collections.abc import Mapping

from hf_models.model import ModelFacts
from kd_config.components import argument
from kd_config.dataset_nodes import packed_key
from kd_config.schema import RunConfig
from kd_data.teacher_prompt import TeacherPrompt


def check_teacher_prompt(config: RunConfig, student: ModelFacts) -> None:
    """Check that ``teacher_prompt`` fits the models and the data.

    Raises:
        ValueError: If it does not.
    """
    if config.teacher_prompt is None:
        return
    if student.task != "causal_lm":
        raise ValueError(
            f"config: teacher_prompt is for causal language models only, and {student.name} is none"
        )
    if config.teacher_tokenizer is not None:
        raise ValueError(
            "config: teacher_prompt and teacher_tokenizer: leave out one of them; the prompt "
            "moves the text, and two tokenizers cut it otherwise"
        )
    packed = packed_key(config)
    if packed is not None:
        raise ValueError(
            f"config: {packed}.packed must be false with teacher_prompt, which stands before each "
            "text; set group_by_length: true instead"
        )


def check_room(
    config: RunConfig, prompt: TeacherPrompt, teachers: Mapping[str, ModelFacts]
) -> None:
    """Make sure that the prompt and the longest text fit together.

    Raises:
        ValueError: If they do not.
    """
    length = argument(config.tokenizer, "max_seq_len")
    for key, facts in teachers.items():
        limit, own = facts.max_positions, len(prompt.ids)
        if limit is not None and isinstance(length, int) and own + length > limit:
            raise ValueError(
                f"config: teacher_prompt has {own} tokens, and with tokenizer.max_seq_len {length} "
                f"that is more than the {limit} positions that {key} takes; shorten one of them"
            )
