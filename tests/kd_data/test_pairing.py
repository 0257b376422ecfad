"""Which targets of two tokenizers end at the same character, against transformers' offsets."""

import json
from types import SimpleNamespace

import pytest
import small_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import KINDS, MARKERS, TEXTS
from torchtune.datasets import chat_dataset, text_completion_dataset
from torchtune.modules.transforms.tokenizers import HuggingFaceBaseTokenizer

from hf_models import HFTokenizer
from kd_data import prompt_completion_dataset
from kd_data.pairing import labelled_runs, pair_targets, pieces
from kd_data.two_tokenizers import UNPAIRED, TwoTokenizers

IGNORE = -100
SIDES = [
    ("small", "large"),
    ("large", "small"),
    ("large", "llama"),
    ("large", "fallback"),
    ("unigram", "small"),
    ("fallback", "unigram"),
    ("bytes", "large"),
]
LONG = " ".join(TEXTS)
# A character of one side must not be unknown to the other, nor dropped by it (a leading space).
texts = st.text(alphabet=sorted(set(LONG)), max_size=40).map(lambda text: text.lstrip(" "))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def tokenizers(root):
    return small_tokenizers.make(root)


def expected_pairs(tokenizers, text, kept=(slice(None), slice(None))):
    """Position → position for a text and an end token behind it, of which each side keeps a part.

    By transformers' offsets. Tokens that share a character all have its offsets: it ends with a
    token whose successor begins behind it, and is no text where its beginning is cut off.
    """
    sides = []
    for tokenizer, part in zip(tokenizers, kept, strict=True):
        encoding = tokenizer._hf(text, return_offsets_mapping=True, add_special_tokens=False)
        offsets = [(0, 0), *encoding.offset_mapping, (len(text), len(text) + 1), (len(text) + 1, 0)]
        numbers = range(len(offsets) - 2)[part]
        before, first = offsets[numbers.start], offsets[numbers.start + 1]
        half = before[1] if first[0] < before[1] else 0
        ends = {
            offsets[number + 1][1]: number - numbers.start - 1
            for number in numbers[1:]
            if offsets[number + 2][0] >= offsets[number + 1][1] > half
        }
        sides.append(ends)
    return {sides[0][end]: sides[1][end] for end in sides[0].keys() & sides[1].keys()}


def pairs_of(sample):
    return {i: j for i, j in enumerate(sample["teacher_index"]) if j != UNPAIRED}


def two(tokenizers, build):
    """The pairs of the first sample of what ``build`` makes with each of two tokenizers."""
    datasets = [build(tokenizer) for tokenizer in tokenizers]
    sample = TwoTokenizers(*datasets, *tokenizers)[0]
    assert sample["tokens"] == datasets[0][0]["tokens"]
    assert sample["teacher_tokens"] == datasets[1][0]["tokens"]
    return pairs_of(sample)


def whole(text):
    return lambda tokenizer: [{"tokens": (ids := tokenizer.encode(text)), "labels": ids}]


@pytest.mark.parametrize("kinds", SIDES, ids="-".join)
@settings(max_examples=40)
@given(text=texts)
def test_plain_text(tokenizers, kinds, text):
    sides = [tokenizers[kind] for kind in kinds]
    assert two(sides, whole(text)) == expected_pairs(sides, text)


@settings(max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd\uffff")))
def test_any_text_in_bytes(tokenizers, text):
    sides = [tokenizers["small"], tokenizers["large"]]
    assert two(sides, whole(text)) == expected_pairs(sides, text)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(text=texts, first=st.integers(0, 10), number=st.integers(2, 60))
def test_a_tokenizer_meets_itself_in_every_target(tokenizers, kind, text, first, number):
    """Those inside of a character aside."""
    tokenizer = tokenizers[kind]
    tokens = tokenizer.encode(text)[first : first + number]
    run = labelled_runs(tokens, tokens, tokenizer, IGNORE)
    pairs = pair_targets(run, run)
    parts = pieces(tokens, tokenizer)
    inside = {i - 1 for i in range(1, len(tokens)) if not parts[i].lstrip("\ufffd")}
    assert pairs == {i: i for i in range(len(tokens) - 1) if i not in inside}
    if text.isascii() and kind in ("small", "large", "bytes", "llama", "lower"):
        assert len(pairs) == max(len(tokens) - 1, 0)


def test_targets_after_an_unequal_split_meet_their_own(tokenizers):
    """The n-th would meet another's n-th from there on."""
    sides = [tokenizers["large"], tokenizers["bytes"]]
    text = "The loop runs until its condition is false, and then the else clause runs."
    ids = [side.encode(text) for side in sides]
    pairs = two(sides, whole(text))
    assert len(ids[0]) < len(ids[1]) / 3
    assert pairs.keys() == set(range(len(ids[0]) - 1)), "every target of the student has one"
    for own, other in pairs.items():
        read, also_read = (
            side.decode(tokens[: i + 2])
            for side, tokens, i in zip(sides, ids, (own, other), strict=True)
        )
        assert read == also_read


@pytest.mark.parametrize("kinds", [*SIDES, ("small", "bytes")], ids="-".join)
@pytest.mark.parametrize("max_seq_len", [2, 5, 17, 60, 200])
def test_cut_off_on_the_right(root, tmp_path, kinds, max_seq_len):
    sides = [HFTokenizer(root / kind, max_seq_len) for kind in kinds]
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"text": LONG}) + "\n")
    found = two(
        sides,
        lambda side: text_completion_dataset(side, "json", data_files=str(file), split="train"),
    )
    # torchtune leaves room for one token more.
    assert found == expected_pairs(sides, LONG, [slice(max_seq_len - 1)] * 2)


@pytest.mark.parametrize("kinds", SIDES, ids="-".join)
@pytest.mark.parametrize("max_seq_len", [2, 5, 17, 60, 200])
@pytest.mark.parametrize("train_on_prompt", [False, True])
def test_cut_off_on_the_left(root, tmp_path, kinds, max_seq_len, train_on_prompt):
    sides = [HFTokenizer(root / kind, max_seq_len) for kind in kinds]
    prompt, completion = LONG[:-70], LONG[-70:]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    found = two(
        sides, lambda side: prompt_completion_dataset(side, file, train_on_prompt=train_on_prompt)
    )
    expected = expected_pairs(sides, LONG, [slice(-max_seq_len, None)] * 2)
    if not train_on_prompt:
        first = [len(side.encode(prompt.rstrip(), add_eos=False)) for side in sides]
        cut = [max(len(side.encode(LONG)) - max_seq_len, 0) for side in sides]
        expected = {
            i: j
            for i, j in expected.items()
            if i + 1 + cut[0] >= first[0] and j + 1 + cut[1] >= first[1]
        }
    if "fallback" in kinds:
        # After half a character such a tokenizer's bytes are no text, until one that is no byte.
        assert found.items() <= expected.items()
        expected = {i: j for i, j in expected.items() if i >= min(found, default=10**9)}
    assert found == expected
    if max_seq_len == 200:
        assert len(found) > 15


CHAT = [
    ("user", "What is a loop? 漢字"),
    ("assistant", "The loop runs until its condition is false. 🙂"),
    ("user", "And a class?"),
    ("assistant", "A class definition makes a class object, which is bound to its name. Café!"),
]


def answers_by_offsets(tokenizer, cut):
    """For each answer: end in its text → position; 0 … len(text), and one more for the marker."""
    chat = [{"role": role, "content": content} for role, content in CHAT]
    text = tokenizer._hf.apply_chat_template(chat, tokenize=False)
    encoding = tokenizer._hf(text, return_offsets_mapping=True, add_special_tokens=False)
    ends = {end: i for i, (_, end) in enumerate(encoding.offset_mapping) if i < cut}
    found = []
    for role, content in CHAT:
        if role == "assistant":
            start = text.index(content)
            own = {end - start: i - 1 for end, i in ends.items() if start < end}
            inside = {end: i for end, i in own.items() if end <= len(content)}
            marker = min((end for end in own if end > len(content)), default=None)
            found.append(inside | ({len(content) + 1: own[marker]} if marker else {}))
    return found


@pytest.mark.parametrize("kinds", [("large", "llama"), ("llama", "small")], ids="-".join)
@pytest.mark.parametrize("lengths", [(None, None), (60, None), (None, 70), (90, 120), (20, 25)])
def test_conversations_in_two_templates(root, tmp_path, kinds, lengths):
    sides = [HFTokenizer(root / k, length) for k, length in zip(kinds, lengths, strict=True)]
    file = tmp_path / "chats.json"
    names = {"user": "human", "assistant": "gpt"}
    turns = [{"from": names[role], "value": content} for role, content in CHAT]
    file.write_text(json.dumps([{"conversations": turns}]))

    def build(side):
        return chat_dataset(
            side,
            source="json",
            data_files=str(file),
            split="train",
            conversation_column="conversations",
            conversation_style="sharegpt",
        )

    student, teacher = (
        answers_by_offsets(side, length or 10**9)
        for side, length in zip(sides, lengths, strict=True)
    )
    expected = {
        a[end]: b[end] for a, b in zip(student, teacher, strict=True) for end in a.keys() & b.keys()
    }
    assert two(sides, build) == expected
    if lengths == (None, None):
        samples = [build(side)[0]["tokens"] for side in sides]
        met = {
            (samples[0][i + 1], samples[1][j + 1])
            for i, j in expected.items()
            if samples[0][i + 1] in sides[0].marker_ids
        }
        ends = [
            side.special_tokens[MARKERS["llama" if kind == "llama" else "chatml"][-1]]
            for side, kind in zip(sides, kinds, strict=True)
        ]
        assert met == {tuple(ends)}


def runs(*parts):
    """A run of each part, a token of each character; ⏹ is a special token."""
    text = "|".join(parts).replace("⏹", "\uffff")
    tokens = [*map(ord, text)]
    labels = [IGNORE if character == "|" else ord(character) for character in text]
    letters = SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)), marker_ids={0xFFFF})
    return labelled_runs(tokens, labels, letters, IGNORE)


WORDS = "a long answer that goes on and on and says a lot of things, each in its turn"


@pytest.mark.parametrize(
    ("student", "teacher", "shift", "number"),
    [
        ("abc⏹", "abc⏹", 0, 3),
        ("abc⏹", "bc⏹", 1, 2),
        ("bc⏹", "abc⏹", -1, 2),
        ("abc", "abcdef⏹", 0, 2),
        # What torchtune cuts off gets an end token all the same: it is no counterpart of a letter.
        ("abc⏹", "abcdef⏹", 0, 2),
        ("abc⏹⏹", "abc⏹", 0, 3),
        # "1 0 1 0" has lost its beginning, for it ends as the other does.
        ("1 0⏹", "1 0 1 0⏹", -4, 3),
        ("⏹", "abc⏹", -3, 0),
        # torchtune's own tokenizers label a turn's header too.
        ("Hello!⏹", "⏹assistant⏹..Hello!⏹", -13, 6),
        (f"<think></think>{WORDS[:60]}", f"{WORDS}⏹", 15, 59),
        (f"{WORDS}⏹", f"<think></think>{WORDS[:60]}", -15, 59),
        (f" {WORDS[:50]}", WORDS, 1, 49),
        ("abc⏹", "xyz⏹", None, 0),
        ("abc⏹", "abd⏹", None, 0),
        (f"{WORDS}!⏹", f"{WORDS}?⏹", None, 0),
        (WORDS.upper(), WORDS, None, 0),
        ("", "abc", None, 0),
    ],
)
def test_how_two_texts_are_laid_over_one_another(student, teacher, shift, number):
    pairs = pair_targets(runs(student), runs(teacher))
    assert {i - j for i, j in pairs.items()} == ({shift} if number else set())
    assert len(pairs) == number


def test_runs_that_are_cut_off_whole():
    """A conversation loses its last turns, or its first."""
    turns = "|yes⏹", "no, never⏹", "why not?⏹"
    for kept, moved in ((turns[:2], 0), (turns[1:], 6)):
        pairs = pair_targets(runs(*kept), runs(*turns))
        assert len(pairs) == sum(len(run.ends) for run in runs(*kept)) > 12
        assert {j - i for i, j in pairs.items()} == {moved}


def test_torchtunes_own_tokenizer(root, tokenizers, tmp_path):
    """Whatever decodes will do."""
    ends = {"bos_token": MARKERS["chatml"][0], "eos_token": MARKERS["chatml"][-1]}
    (tmp_path / "config.json").write_text(json.dumps(ends))
    own = HuggingFaceBaseTokenizer(
        str(root / "small" / "tokenizer.json"),
        tokenizer_config_json_path=str(tmp_path / "config.json"),
    )
    assert own.decode(own.encode("Numbers are", add_bos=False, add_eos=False)) == "Numbers are"
    sides = [own, tokenizers["large"]]
    ids = [
        own.encode(LONG, add_bos=False, add_eos=True),
        tokenizers["large"].encode(LONG),
    ]
    found = [labelled_runs(i, i, side, IGNORE) for i, side in zip(ids, sides, strict=True)]
    expected = expected_pairs([tokenizers["small"], tokenizers["large"]], LONG)
    assert pair_targets(*found) == expected


def test_a_tokenizer_that_would_tidy_up_its_texts(tokenizers):
    text = "one , two . It 's three !"
    assert tokenizers["llama"].decode(tokenizers["llama"].encode(text, add_eos=False)) == text
    sides = [tokenizers["llama"], tokenizers["bytes"]]
    assert two(sides, whole(text)) == expected_pairs(sides, text)


def test_a_text_that_is_lower_case_on_one_side(tokenizers):
    assert two([tokenizers["small"], tokenizers["lower"]], whole("Numbers are immutable.")) == {}
