"""Which tokens of a rendered conversation belong to which of its parts."""

from collections.abc import Sequence

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
