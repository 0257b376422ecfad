"""How a conversation is rendered, and which tokens belong to which of its parts."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from torchtune.data import Message


def as_chat(message: Message) -> dict[str, str]:
    """A message as chat templates take it.

    Raises:
        ValueError: If it holds images.
    """
    if message.contains_media:
        raise ValueError("HFTokenizer takes text messages only, not images")
    # torchtune's name for what a tool returns.
    role = "tool" if message.role == "ipython" else message.role
    return {"role": role, "content": message.text_content}


def render(
    hf: Any, directory: Path, chat: list[dict[str, str]], add_generation_prompt: bool = False
) -> str:
    """The conversation's text in the chat template of the directory's tokenizer ``hf``.

    Raises:
        ValueError: If there is no template, or it refuses the conversation.
    """
    if hf.chat_template is None:
        raise ValueError(
            f"{directory} has no chat template: use a plain text or prompt/completion dataset, or "
            "a directory with a chat_template.jinja"
        )
    try:
        return hf.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise ValueError(
            f"the chat template of {directory} refuses a conversation: {error}"
        ) from error


def end_of_turn(markers: Iterable[str]) -> re.Pattern[str]:
    """What may stand behind a turn's content: blanks, and one of the tokenizer's markers."""
    # Longest first, as one marker may begin with another; without any, nothing matches.
    ordered = sorted(markers, key=len, reverse=True)
    return re.compile(rf"\s*(?:{'|'.join(map(re.escape, ordered)) or '(?!)'})")


def common_prefix_length(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)


def outside_spans(
    offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[bool]:
    """Per token, whether it shares no character with any span."""
    return [
        not any(start < span_end and end > span_start for span_start, span_end in spans)
        for start, end in offsets
    ]
