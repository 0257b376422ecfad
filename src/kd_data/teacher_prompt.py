"""What only the teacher reads before each text: instructions, examples, facts.

Shapes: L tokens of the prompt, S positions of the student.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torchtune.data import Message

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
        tokens, labels = (list(sample[name]) for name in ("tokens", "labels"))
        begins = tokens[: tokens[:1] == [self.bos_id]]
        masked = [self.ignore_index] * (len(begins) + len(self.ids))
        # As in the student's text its first token is nobody's target.
        rest = labels[len(begins) :] if begins else [self.ignore_index, *labels[1:]]
        read = {"tokens": begins + self.ids + tokens[len(begins) :], "labels": masked + rest}
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


def teacher_prompt(
    prompt: str | Sequence[Mapping[str, str]], tokenizer: Any, ignore_index: int
) -> TeacherPrompt:
    """The tokens of a prompt as the tokenizer's chat template has it, plain text without one.

    Args:
        prompt: A text, which in a template is the system's message, or messages, each with
            ``role`` and ``content``.
        tokenizer: The student's.
        ignore_index: Label of what is no target.

    Raises:
        ValueError: If there are messages but no template, the template refuses them, or the
            tokenizer is none of ours.
    """
    if not isinstance(tokenizer, HFTokenizer):
        raise ValueError("config: teacher_prompt needs hf_models.tokenizer as the tokenizer")
    if isinstance(prompt, str) and not tokenizer.has_template:
        ids = tokenizer.encode(prompt, add_bos=False, add_eos=False)
        return TeacherPrompt(ids, tokenizer.bos_id, ignore_index)
    chat: Any = [{"role": "system", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        ids = tokenizer.encode_messages([Message(**one) for one in chat])
    except (TypeError, ValueError) as err:
        raise ValueError(f"config: teacher_prompt: {err}") from err
    begins = tokenizer.bos_id is not None and ids[:1] == [tokenizer.bos_id]
    return TeacherPrompt(ids[1:] if begins else ids, tokenizer.bos_id, ignore_index)
