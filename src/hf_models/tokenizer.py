"""A Hugging Face directory's own tokenizer behind torchtune's tokenizer protocol."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torchtune.data import Message
from torchtune.modules.transforms import Transform
from torchtune.modules.transforms.tokenizers import ModelTokenizer

from hf_models.chat_spans import (
    as_chat,
    common_prefix_length,
    end_of_turn,
    outside_spans,
    render,
)
from hf_models.vocabulary import load_tokenizer


def tokenizer(checkpoint_dir: str | Path, max_seq_len: int | None = None) -> "HFTokenizer":
    """The tokenizer of a Hugging Face directory, for a config's ``tokenizer`` node.

    Args:
        checkpoint_dir: Directory with ``tokenizer.json`` (or what else transformers can read).
        max_seq_len: Longest sequence in tokens; longer ones are cut. None: no limit.

    Raises:
        FileNotFoundError: If the directory or its tokenizer files are missing.
    """
    return HFTokenizer(checkpoint_dir, max_seq_len)


class HFTokenizer(ModelTokenizer, Transform):
    """torchtune's ``ModelTokenizer`` over the transformers tokenizer of a local directory.

    Attributes:
        bos_id: The begin-of-sequence id, if this tokenizer itself puts one in front of a text.
            Qwen and SmolLM2 do not, although some of them define the token.
        eos_id: The end-of-sequence id, None if there is none.
        pad_id: The padding id; without one the end-of-sequence id, without that 0.
        special_tokens: Every added token and its id.
        marker_ids: Those of them that are no text, such as the end of a turn.
        vocab_size: Number of ids the tokenizer can produce; a model may have more rows.
        max_seq_len: Longest sequence in tokens, or None.
    """

    def __init__(self, checkpoint_dir: str | Path, max_seq_len: int | None = None) -> None:
        self.checkpoint_dir = Path(checkpoint_dir)
        self.max_seq_len = max_seq_len
        self._hf = load_tokenizer(self.checkpoint_dir)
        bos_id = self._hf.bos_token_id
        self.bos_id: int | None = bos_id if bos_id in self._hf("").input_ids else None
        self.eos_id: int | None = self._hf.eos_token_id
        candidates = (self._hf.pad_token_id, self.eos_id, 0)
        self.pad_id: int = next(i for i in candidates if i is not None)
        self.special_tokens: dict[str, int] = self._hf.get_added_vocab()
        self.vocab_size = len(self._hf)
        added = self._hf.added_tokens_decoder.items()
        self.marker_ids = frozenset(index for index, token in added if token.special)
        self._end_of_turn = end_of_turn([token.content for _, token in added if token.special])
        self._render = partial(render, self._hf, self.checkpoint_dir)

    def encode(self, text: str, add_bos: bool = True, add_eos: bool = True) -> list[int]:
        """Token ids of a plain text, without a chat template and never cut.

        Args:
            text: The text.
            add_bos: Put ``bos_id`` in front, where the tokenizer uses one.
            add_eos: Put ``eos_id`` behind, where the tokenizer has one.
        """
        tokens: list[int] = self._hf(text, add_special_tokens=False, verbose=False).input_ids
        if add_bos and self.bos_id is not None:
            tokens.insert(0, self.bos_id)
        if add_eos and self.eos_id is not None:
            tokens.append(self.eos_id)
        return tokens

    def encode_text(self, text: str, pair: str | None = None) -> dict[str, list[int]]:
        """What an encoder reads of a text or of two: ``tokens``, with the tokenizer's own markers.

        Too long ones are cut to ``max_seq_len``, the longer of two first; the markers stay.

        Returns:
            ``tokens``, and ``token_type_ids`` if this tokenizer tells the two texts apart.

        Raises:
            ValueError: If ``max_seq_len`` has room for the markers alone.
        """
        found = self._hf(text, pair, **self._cut_to(self.max_seq_len, pair is not None))
        kept = {"tokens": found["input_ids"]}
        if "token_type_ids" in found:
            kept["token_type_ids"] = found["token_type_ids"]
        return kept

    def encode_target(self, text: str, max_length: int | None = None) -> list[int]:
        """What a decoder behind an encoder is to write: a text with the tokenizer's own markers.

        Args:
            text: The text.
            max_length: Longest target in tokens; None: ``max_seq_len``.

        Raises:
            ValueError: If it has room for the markers alone.
        """
        limit = self.max_seq_len if max_length is None else max_length
        tokens: list[int] = self._hf(text_target=text, **self._cut_to(limit)).input_ids
        return tokens

    def _cut_to(self, limit: int | None, pair: bool = False) -> dict[str, Any]:
        if limit is None:
            return {"verbose": False}
        markers = self._hf.num_special_tokens_to_add(pair=pair)
        if limit <= markers:  # which the tokenizer would take for no limit at all
            raise ValueError(
                f"{limit} tokens have no room for a text beside {markers} markers; raise "
                "tokenizer.max_seq_len or max_target_len"
            )
        return {"truncation": True, "max_length": limit, "verbose": False}

    @property
    def has_template(self) -> bool:
        """Whether the directory has a chat template."""
        return self._hf.chat_template is not None

    @property
    def chat_bos_id(self) -> int | None:
        """The id that conversations begin with: `bos_id`, or one that the template alone writes.

        One that opens every turn, as SmolLM2's does, is none.
        """
        token = self._hf.bos_token
        if self.bos_id is not None or token is None or not self.has_template:
            return self.bos_id
        text = self._render([{"role": "user", "content": "?"}], add_generation_prompt=True)
        alone = text.startswith(token) and text.count(token) == 1
        return self._hf.bos_token_id if alone else None

    def encode_messages(self, messages: list[Message]) -> list[int]:
        """Token ids of a whole conversation in the directory's chat template, never cut.

        Raises:
            ValueError: If the directory has no chat template, or the template refuses the
                conversation or drops a message, as some do with a system's that stands alone.
        """
        chat = [as_chat(message) for message in messages]
        text = self._render(chat)
        for i in range(len(chat)):
            self._content_span(text, chat, i)
        ids: list[int] = self._hf(text, add_special_tokens=False, verbose=False).input_ids
        return ids

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids, as it was: no space before a full stop is taken out."""
        return self._hf.decode(
            token_ids,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )

    def tokenize_messages(
        self, messages: list[Message], *, add_eos: bool = True
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation in the directory's chat template, and what is masked.

        The conversation is rendered once and tokenised once, so the ids are those of transformers'
        ``apply_chat_template``. Of a message that is not ``masked``, its content and its
        end-of-turn token are trained on; of an assistant's also what the template writes between
        the generation prompt and the content, such as an empty block of thoughts. A sequence
        longer than ``max_seq_len`` is cut, without an end token that was never there.

        Args:
            messages: The conversation, text only.
            add_eos: False leaves the last assistant message open, for a model to continue; after
                any other message the generation prompt follows instead.

        Returns:
            Token ids, and a mask of the same length: True means *not* trained on.

        Raises:
            ValueError: If the directory has no chat template, or the template refuses the
                conversation or hides where an unmasked message is.
        """
        chat = [as_chat(message) for message in messages]
        last = len(messages) - 1
        open_end = not add_eos and chat[last]["role"] == "assistant"
        text = self._render(chat, add_generation_prompt=not add_eos and not open_end)
        spans = [
            self._trained_span(text, chat, i) for i in range(len(chat)) if not messages[i].masked
        ]
        if open_end:
            text = text[: self._content_span(text, chat, last)[1]]
        encoding = self._hf(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        tokens = encoding.input_ids[: self.max_seq_len]
        mask = outside_spans(encoding.offset_mapping[: self.max_seq_len], spans)
        return tokens, mask

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        """Replace a sample's ``messages`` by ``tokens`` and ``mask``.

        Args:
            sample: Holds ``messages``, a list of torchtune messages.
            inference: True leaves the end open for the model to continue.
        """
        tokens, mask = self.tokenize_messages(sample["messages"], add_eos=not inference)
        rest = {key: value for key, value in sample.items() if key != "messages"}
        return rest | {"tokens": tokens, "mask": mask}

    def _trained_span(self, text: str, chat: list[dict[str, str]], i: int) -> tuple[int, int]:
        """Where in ``text`` message i's turn begins and ends, in characters."""
        start, end = self._content_span(text, chat, i)
        if chat[i]["role"] == "assistant" and i > 0:
            prompt = self._render(chat[:i], add_generation_prompt=True)
            # Not a prefix where the template renders earlier turns differently later on, or puts
            # into the generation prompt what it takes out of past turns: then the content it is.
            if text.startswith(prompt):
                start = len(prompt)
        end_of_turn = self._end_of_turn.match(text, end)
        return start, end_of_turn.end() if end_of_turn else end

    def _content_span(self, text: str, chat: list[dict[str, str]], i: int) -> tuple[int, int]:
        """Where in ``text`` message i's content begins and ends, in characters.

        Rendered again with one foreign character in its place, the conversation shows what lies
        before and behind the content, whatever the template trims, strips or adds.
        """
        content = chat[i]["content"]
        probe = next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in text)
        probed = self._render([*chat[:i], chat[i] | {"content": probe}, *chat[i + 1 :]])
        before, _, behind = probed.partition(probe)
        start = common_prefix_length(before, text)
        end = len(text) - len(behind)
        if probed.count(probe) != 1 or not text.endswith(behind) or start > end:
            raise ValueError(
                f"the chat template of {self.checkpoint_dir} rewrites or drops the "
                f"{chat[i]['role']} message {content[:40]!r}: cannot tell which tokens are its own"
            )
        return start, end
