import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torchtune.config import instantiate
from torchtune.data import Message
from torchtune.datasets import (
    PackedDataset,
    chat_dataset,
    instruct_dataset,
    text_completion_dataset,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import hf_models
from hf_models import HFTokenizer, vocabulary_mismatch
from hf_models.vocabulary import has_tokenizer

# The generation blocks change nothing that is rendered; transformers' own assistant mask, an
# independent oracle, is made from them.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<|eot_id|>"
    "{% endgeneration %}{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Thoughts stay in the turns after the last question, where empty ones are added; before it they go.
QWEN3 = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}"
    "{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.index0 > ns.last %}<think>\n"
    "{% if '</think>' in m.content %}"
    "{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}{% endif %}{{ '\n' }}"
    "</think>\n\n{% endif %}{{ answer }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SPECIAL = {
    CHATML: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    LLAMA3: ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    QWEN3: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}

SYSTEM = Message(role="system", content="Answer in one line.", masked=True)
USER = Message(role="user", content="What is a name?", masked=True)
ANSWER = Message(role="assistant", content="It is bound to an object.")
USER_2 = Message(role="user", content="  And then?\n", masked=True)
ANSWER_2 = Message(role="assistant", content="The else clause runs.\n\nTwice 😀 é.")
CONVERSATION = [SYSTEM, USER, ANSWER, USER_2, ANSWER_2]
THOUGHT = Message(role="assistant", content="<think>\nIt is 4, is it?\n</think>\n\nIt is 4")


def save_tokenizer(
    directory: Path, template: str | None = CHATML, trim_offsets: bool = False, **tokens: str | None
) -> Path:
    """A byte-level BPE tokenizer; only Llama 3's puts a begin-of-sequence token first."""
    special = SPECIAL.get(template, SPECIAL[CHATML])
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(tiny.SENTENCES, trainer)
    backend.add_tokens(["<think>", "</think>"])
    steps = [processors.ByteLevel(trim_offsets=True)] if trim_offsets else []
    if template == LLAMA3:
        bos = special[0]
        steps.append(processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, 0)]))
    backend.post_processor = processors.Sequence(steps)
    names = {"bos_token": special[0], "eos_token": special[-1]} | tokens
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{k: v for k, v in names.items() if v is not None}
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[Any, Path] = {}

    def make(template: str | None = CHATML, **options: Any) -> Path:
        key = (template, *sorted(options.items()))
        if key not in made:
            made[key] = save_tokenizer(tmp_path_factory.mktemp("tok"), template, **options)
        return made[key]

    return make


def as_chat(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.text_content} for m in messages]


def trained_texts(tokenizer: HFTokenizer, messages: list[Message], **kwargs: Any) -> list[str]:
    """The text of every run of tokens that is trained on."""
    tokens, mask = tokenizer.tokenize_messages(messages, **kwargs)
    assert len(tokens) == len(mask)
    runs: list[list[int]] = []
    for i, token in enumerate(tokens):
        if not mask[i]:
            if i == 0 or mask[i - 1]:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("template", [CHATML, LLAMA3, QWEN3], ids=["chatml", "llama3", "qwen3"])
@pytest.mark.parametrize(
    "messages",
    [
        [USER, ANSWER],
        CONVERSATION,
        [USER, THOUGHT],
        [SYSTEM, USER, THOUGHT, USER_2, THOUGHT, USER, ANSWER],
    ],
    ids=["short", "long", "thought", "thoughts"],
)
def test_tokens_and_mask_are_those_of_transformers(tokenizer_dir, template, messages, trim_offsets):
    directory = tokenizer_dir(template, trim_offsets=trim_offsets)
    expected = AutoTokenizer.from_pretrained(directory).apply_chat_template(
        as_chat(messages), return_dict=True, return_assistant_tokens_mask=True
    )
    tokens, mask = HFTokenizer(directory).tokenize_messages(messages)
    assert tokens == expected["input_ids"]
    assert [not masked for masked in mask] == [bool(m) for m in expected["assistant_masks"]]


def test_positions_decide_what_a_thinking_template_writes(tokenizer_dir):
    tokenizer = HFTokenizer(tokenizer_dir(QWEN3))
    assert trained_texts(tokenizer, [USER, THOUGHT, USER_2, THOUGHT]) == [
        "It is 4<|im_end|>",
        "<think>\nIt is 4, is it?\n</think>\n\nIt is 4<|im_end|>",
    ]
    assert trained_texts(tokenizer, [USER, ANSWER]) == [
        "<think>\n\n</think>\n\nIt is bound to an object.<|im_end|>"
    ]
    # Rendered up to the tool's result the first thought is there; in the whole it is not.
    call = Message(role="assistant", content="<think>\nA tool!\n</think>\n\ncall()", masked=True)
    tool = Message(role="ipython", content="5", masked=True)
    first = [USER, call, tool, ANSWER, USER_2]
    assert trained_texts(tokenizer, [*first, ANSWER_2]) == [
        "It is bound to an object.<|im_end|>",
        f"<think>\n\n</think>\n\n{ANSWER_2.text_content}<|im_end|>",
    ]


def test_every_message_decides_for_itself(tokenizer_dir):
    tokenizer = HFTokenizer(tokenizer_dir())
    masked_answer = Message(role="assistant", content="The same.", masked=True)
    same = Message(role="assistant", content="The same.")
    assert trained_texts(tokenizer, [USER, masked_answer, USER_2, same]) == ["The same.<|im_end|>"]
    # A question that is trained on, and one that looks like the header before it.
    for text in ("Why is it so?", "user", "<|im_end|>"):
        question = Message(role="user", content=text)
        assert trained_texts(tokenizer, [SYSTEM, question, masked_answer]) == [text + "<|im_end|>"]


def test_a_template_without_end_of_turn_tokens(tokenizer_dir):
    tokenizer = HFTokenizer(tokenizer_dir(PLAIN))
    assert trained_texts(tokenizer, [USER, ANSWER, USER_2, ANSWER_2]) == [
        f"assistant: {ANSWER.text_content}",
        f"assistant: {ANSWER_2.text_content}",
    ]


@settings(max_examples=60)
@given(
    contents=st.lists(st.text(alphabet="ab \n\té😀<>:|", max_size=12), min_size=4, max_size=4),
    trim_offsets=st.booleans(),
)
def test_no_part_of_an_answer_is_lost(tokenizer_dir, contents, trim_offsets):
    tokenizer = HFTokenizer(tokenizer_dir(CHATML, trim_offsets=trim_offsets))
    roles = ["user", "assistant"] * 2
    messages = [
        Message(role=role, content=content, masked=role == "user")
        for role, content in zip(roles, contents, strict=True)
    ]
    trained = trained_texts(tokenizer, messages)
    assert len(trained) == 2
    for text, content in zip(trained, contents[1::2], strict=True):
        # A blank at its beginning may share a token with the header's line break.
        assert text.removeprefix("\n") in (
            content + "<|im_end|>",
            content.removeprefix("\n") + "<|im_end|>",
        )


@pytest.mark.parametrize("length", [1, 20, 40, 1000])
def test_truncation_keeps_tokens_and_mask_aligned(tokenizer_dir, length):
    tokens, mask = HFTokenizer(tokenizer_dir()).tokenize_messages(CONVERSATION)
    cut = hf_models.tokenizer(tokenizer_dir(), max_seq_len=length)
    assert 40 < len(tokens) < 1000
    assert cut.tokenize_messages(CONVERSATION) == (tokens[:length], mask[:length])


@pytest.mark.parametrize("template", [CHATML, LLAMA3], ids=["chatml", "llama3"])
def test_prompts_for_inference(tokenizer_dir, template):
    directory = tokenizer_dir(template)
    tokenizer, hf = HFTokenizer(directory), AutoTokenizer.from_pretrained(directory)
    prompt = hf.apply_chat_template(as_chat([SYSTEM, USER]), add_generation_prompt=True)
    empty = Message(role="assistant", content="")
    for messages in ([SYSTEM, USER], [SYSTEM, USER, empty]):
        assert tokenizer({"messages": messages}, inference=True)["tokens"] == prompt["input_ids"]
    half = hf.apply_chat_template(as_chat([USER, ANSWER]), continue_final_message=True)
    assert tokenizer.tokenize_messages([USER, ANSWER], add_eos=False)[0] == half["input_ids"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            "drops the system message",
        ),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "rewrites"),
        ("{{ raise_exception('Only one turn!') }}", "refuses a conversation: Only one turn!"),
        (None, "has no chat template"),
    ],
)
def test_templates_that_cannot_be_used(tokenizer_dir, template, message):
    directory = tokenizer_dir(template)
    tokenizer = HFTokenizer(directory)
    assert tokenizer.encode("a name", add_eos=False)
    with pytest.raises(ValueError, match=message) as error:
        tokenizer.tokenize_messages([Message(role="system", content="a"), USER, ANSWER])
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)


def test_images_are_refused(tokenizer_dir):
    content = [{"type": "image", "content": None}, {"type": "text", "content": "What is it?"}]
    with pytest.raises(ValueError, match="text messages only"):
        HFTokenizer(tokenizer_dir()).tokenize_messages([Message(role="user", content=content)])


@pytest.mark.parametrize("template", [CHATML, LLAMA3], ids=["chatml", "llama3"])
def test_plain_text(tokenizer_dir, template):
    directory = tokenizer_dir(template)
    tokenizer, hf = HFTokenizer(directory, max_seq_len=2), AutoTokenizer.from_pretrained(directory)
    text = "A class definition makes a class object."
    ids = hf(text, add_special_tokens=False).input_ids
    # Only Llama 3's tokenizer itself puts the token first, although both define one.
    bos = [hf.bos_token_id] if template == LLAMA3 else []
    assert tokenizer.encode(text) == [*bos, *ids, hf.eos_token_id]
    assert tokenizer.encode(text, add_eos=False) == hf(text).input_ids == bos + ids
    assert tokenizer.encode(text, add_bos=False, add_eos=False) == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, hf.eos_token_id], skip_special_tokens=True) == text
    assert tokenizer.bos_id == (hf.bos_token_id if template == LLAMA3 else None)
    assert tokenizer.eos_id == hf.eos_token_id
    assert tokenizer.vocab_size == len(hf)
    assert tokenizer.special_tokens[hf.eos_token] == hf.eos_token_id


@pytest.mark.parametrize(
    ("tokens", "pad"),
    [
        ({"pad_token": "<|endoftext|>"}, "<|endoftext|>"),
        ({}, "<|im_end|>"),
        ({"eos_token": None}, "<|endoftext|>"),
    ],
    ids=["own", "eos", "neither"],
)
def test_pad_id(tokenizer_dir, tokens, pad):
    tokenizer = HFTokenizer(tokenizer_dir(**tokens))
    assert tokenizer.pad_id == tokenizer.special_tokens[pad]


def test_missing_files(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("used the network"))
    for directory in (tmp_path, tmp_path / "absent", "org/name"):
        with pytest.raises(FileNotFoundError, match=str(directory)):
            hf_models.tokenizer(directory)


def test_vocabularies_are_compared_id_by_id(tokenizer_dir, tmp_path, caplog):
    chatml, llama3 = tokenizer_dir(CHATML), tokenizer_dir(LLAMA3)
    extended = AutoTokenizer.from_pretrained(chatml)
    extended.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    extended.save_pretrained(tmp_path / "extended")
    assert vocabulary_mismatch(chatml, chatml) is None
    assert vocabulary_mismatch(chatml, tmp_path / "extended") is None
    mismatch = vocabulary_mismatch(chatml, llama3)
    assert "id 0 is '<|endoftext|>' and '<|begin_of_text|>'" in mismatch
    assert "\n" not in mismatch
    (tmp_path / "empty").mkdir()
    assert has_tokenizer(chatml)
    assert not has_tokenizer(tmp_path / "empty")
    assert not caplog.records
    assert vocabulary_mismatch(chatml, tmp_path / "empty") is None
    assert "not compared" in caplog.text


def test_the_embedded_model_speaks_its_own_template(embedded_model_dir):
    tokenizer = HFTokenizer(embedded_model_dir)
    hf = AutoTokenizer.from_pretrained(embedded_model_dir)
    assert hf.decode(tokenizer.encode("a 12")) == "a 12<|im_end|>"
    messages = [USER, ANSWER, USER_2, ANSWER_2]
    tokens, _ = tokenizer.tokenize_messages(messages)
    assert tokens == hf.apply_chat_template(as_chat(messages))["input_ids"]
    assert trained_texts(tokenizer, messages) == [
        f"{ANSWER.text_content}<|im_end|>",
        f"{ANSWER_2.text_content}<|im_end|>",
    ]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 2, 2)


def labelled_text(tokenizer: HFTokenizer, sample: dict[str, Any]) -> str:
    labels = [int(label) for label in sample["labels"]]
    assert all(label in (-100, int(t)) for label, t in zip(labels, sample["tokens"], strict=True))
    return tokenizer.decode([label for label in labels if label != -100])


ROWS = [
    {
        "input": "What is a name?",
        "output": f"It is bound {i} times.",
        "messages": [
            {"role": "user", "content": "What is a name?"},
            {"role": "assistant", "content": f"It is bound {i} times."},
        ],
        "text": f"Numbers are immutable, {i} too.",
    }
    for i in range(3)
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            partial(chat_dataset, conversation_column="messages", conversation_style="openai"),
            "It is bound {i} times.<|im_end|>",
        ),
        (
            partial(instruct_dataset, column_map={"input": "input", "output": "output"}),
            "It is bound {i} times.<|im_end|>",
        ),
        (
            partial(text_completion_dataset, column="text"),
            "Numbers are immutable, {i} too.<|im_end|>",
        ),
    ],
    ids=["chat", "instruct", "text"],
)
def test_torchtune_datasets(tokenizer_dir, tmp_path, build, expected, packed):
    data = tmp_path / "data.json"
    data.write_text(json.dumps(ROWS))
    node = {"_component_": "hf_models.tokenizer", "checkpoint_dir": str(tokenizer_dir())}
    tokenizer = instantiate(OmegaConf.create(node), max_seq_len=500)
    dataset = build(tokenizer, source="json", data_files=str(data), split="train", packed=packed)
    expected_texts = [expected.format(i=i) for i in range(len(ROWS))]
    if packed:
        assert isinstance(dataset, PackedDataset)
        expected_texts = ["".join(expected_texts)]
    assert [labelled_text(tokenizer, sample) for sample in dataset] == expected_texts
