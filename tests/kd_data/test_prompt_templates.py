"""A prompt for the teacher in the chat templates that there are."""

import pytest
import tiny
from torchtune.data import Message
from transformers import AutoTokenizer

from hf_models import tokenizer
from kd_data.teacher_prompt import teacher_prompt

IGNORED = -100
SYSTEM = "Numbers are objects."
EXAMPLES = [{"role": "user", "content": "A loop?"}, {"role": "assistant", "content": "It ends."}]


@pytest.mark.parametrize("prompt", [SYSTEM, EXAMPLES])
def test_it_is_rendered_by_the_tokenizer_s_template(tmp_path, prompt):
    tiny.save_tokenizer(tmp_path)
    messages = [{"role": "system", "content": prompt}] if isinstance(prompt, str) else prompt
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(messages, return_dict=True).input_ids
    assert teacher_prompt(prompt, tokenizer(tmp_path), IGNORED).ids == expected


def test_without_a_template_it_is_plain_text(tmp_path):
    tiny.save_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    own = tokenizer(tmp_path)
    assert own.decode(teacher_prompt(SYSTEM, own, IGNORED).ids) == SYSTEM
    with pytest.raises(ValueError, match=r"teacher_prompt: .* has no chat template"):
        teacher_prompt(EXAMPLES, own, IGNORED)


def with_template(directory, template, bos_token):
    """A tokenizer that puts no BOS before a text itself, as OLMo 2's."""
    tiny.save_tokenizer(directory)
    hf = AutoTokenizer.from_pretrained(directory)
    hf.chat_template, hf.bos_token = template, bos_token
    hf.save_pretrained(directory)
    return tokenizer(directory)


TEMPLATES = {
    "by the template": ("{{ bos_token }}" + tiny.CHATML, "<|endoftext|>"),
    "by nobody": (tiny.CHATML, "<|endoftext|>"),
    "of every turn": (tiny.CHATML, "<|im_start|>"),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_conversation_begins_once(tmp_path, case):
    """Prompt and conversation are what the template makes of both together."""
    own = with_template(tmp_path, *TEMPLATES[case])
    conversation = [Message("user", "Hi."), Message("assistant", "Yes.")]
    tokens, _ = own.tokenize_messages(conversation)
    both = teacher_prompt(EXAMPLES, own, IGNORED).beside({"tokens": tokens, "labels": tokens})
    whole, _ = own.tokenize_messages([*(Message(**one) for one in EXAMPLES), *conversation])
    assert both["teacher_tokens"] == whole
    at = both["teacher_index"]
    assert [whole[i] for i in at[1:]] == tokens[1:]


# As Gemma 3's: the system's message is put into the first user's.
FOLDED = (
    "{% set ns = namespace(first='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.first = m['content'] %}{% else %}<|im_start|>{{ ns.first }}{{ m['content'] }}"
    "<|im_end|>{% set ns.first = '' %}{% endif %}{% endfor %}"
)


def test_a_template_that_drops_what_it_is_given_is_refused(tmp_path):
    own = with_template(tmp_path, FOLDED, "<|endoftext|>")
    message = r"config: teacher_prompt: .* drops the system message .*; give messages"
    with pytest.raises(ValueError, match=message):
        teacher_prompt(SYSTEM, own, IGNORED)
    chat = [{"role": "system", "content": SYSTEM}, *EXAMPLES]
    assert SYSTEM in own.decode(teacher_prompt(chat, own, IGNORED).ids)


@pytest.mark.parametrize(
    "message",
    [
        "A loop?",
        {"role": "user"},
        {"role": "usr", "content": "A loop?"},
        {"role": "user", "content": ["A loop?"]},
        {"role": "user", "content": "A loop?", "weight": "0"},
    ],
)
def test_what_is_no_message(tmp_path, message):
    tiny.save_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"config: teacher_prompt: its message 1 must have a role"):
        teacher_prompt([EXAMPLES[0], message], tokenizer(tmp_path), IGNORED)


def test_a_tokenizer_that_is_none_of_ours():
    with pytest.raises(ValueError, match=r"config: teacher_prompt needs hf_models\.tokenizer"):
        teacher_prompt(SYSTEM, object(), IGNORED)
