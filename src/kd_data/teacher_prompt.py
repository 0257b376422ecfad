"""What only the teacher reads before each text: instructions, examples, facts.

Shapes: L tokens of the prompt, S positions of the student.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torchtune.data import Message, Role

from hf_models import HFTokenizer
from kd_data.batch import Batch


@dataclass(frozen=True)
class TeacherPrompt:
    """Tokens that the teacher reads before a text, behind the text's token of its beginning.

    Attributes:
        ids: [L].
        bos_id: The token that texts may begin with; None where they do not.
        ignore_index: Label of what is no target.
    """

    ids: list[int]
    bos_id: int | None
    ignore_index: int

    def before(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The sample that the teacher reads."""
        tokens, labels = (torch.as_tensor(sample[name]).tolist() for name in ("tokens", "labels"))
        at = int(tokens[:1] == [self.bos_id])
        # As in the student's text its first token is nobody's target.
        masked = [self.ignore_index] * (len(self.ids) + len(labels[:1]))
        read = {"tokens": tokens[:at] + self.ids + tokens[at:], "labels": masked + labels[1:]}
        return {**sample, **read}

    def beside(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The sample with the teacher's tokens, and where they are those of the student.

        The student's position i meets i + L: both have read the same text up to there. (At a
        beginning of text the teacher's is the last one of the prompt.)
        """
        read = self.before(sample)
        offset = len(self.ids)
        return {
            **sample,
            "teacher_tokens": read["tokens"],
            "teacher_labels": read["labels"],
            "teacher_index": list(range(offset, offset + len(sample["tokens"]))),
        }

    def batches(self, to_batch: Callable[..., Batch]) -> Callable[[Sequence[Any]], Batch]:
        """Makes batches in which the teacher reads the prompt too."""
        return partial(_batch_of, to_batch, self.beside)

    def teachers_batches(self, to_batch: Callable[..., Batch]) -> Callable[[Sequence[Any]], Batch]:
        """Makes batches of what the teacher alone reads."""
        return partial(_batch_of, to_batch, self.before)


def _batch_of(
    to_batch: Callable[..., Batch], change: Callable[..., Any], samples: Sequence[Any]
) -> Batch:
    return to_batch([change(sample) for sample in samples])


def teacher_prompt(prompt: str | Sequence[Any], tokenizer: Any, ignore_index: int) -> TeacherPrompt:
    """The tokens of a prompt as the tokenizer's chat template has it, plain text without one.

    Args:
        prompt: A text, which in a template is the system's message, or messages, each with
            ``role`` and ``content``.
        tokenizer: The student's.
        ignore_index: Label of what is no target.

    Raises:
        ValueError: If there are messages but no template, the template refuses them or drops one,
            or the tokenizer is none of ours.
    """
    if not isinstance(tokenizer, HFTokenizer):
        raise ValueError("config: teacher_prompt needs hf_models.tokenizer as the tokenizer")
    bos_id = tokenizer.chat_bos_id
    if tokenizer.has_template:
        ids = _rendered(prompt, tokenizer)
    elif isinstance(prompt, str):
        ids = tokenizer.encode(prompt, add_bos=False, add_eos=False)
    else:
        raise ValueError(
            f"config: teacher_prompt: {tokenizer.checkpoint_dir} has no chat template for "
            "messages; write one text"
        )
    begins = bos_id is not None and ids[:1] == [bos_id]
    return TeacherPrompt(ids[1:] if begins else ids, bos_id, ignore_index)


def _rendered(prompt: str | Sequence[Any], tokenizer: HFTokenizer) -> list[int]:
    chat = [{"role": "system", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = [_message(number, one) for number, one in enumerate(chat)]
    try:
        return tokenizer.encode_messages(messages)
    except ValueError as err:
        raise ValueError(
            f"config: teacher_prompt: {err}; give messages that the template takes, such as a "
            "user's and an assistant's"
        ) from err


def _message(number: int, given: Any) -> Message:
    roles = get_args(Role)
    match given:
        case {"role": role, "content": str(content), **rest} if role in roles and not rest:
            return Message(role, content)
    raise ValueError(
        f"config: teacher_prompt: its message {number} must have a role "
        f"({', '.join(roles)}), a content that is text, and nothing else"
    )
