"""Sources and targets of encoder-decoders: flat, nested, and lists, as the Hub has them."""

import json

import families
import pytest
from datasets import Dataset, Features, List, Value
from omegaconf import OmegaConf
from torchtune.config import instantiate
from transformers import AutoTokenizer

from hf_models import HFTokenizer
from kd_data import collate, seq2seq_dataset
from kd_data.datasets import sources
from kd_data.tasks import collate_seq2seq

WMT = [
    {"translation": {"de": "der name", "en": "a name"}},
    {"translation": {"de": "das objekt", "en": "an object"}},
]
TRIPLES = [["Mars Hill College", "JOINED", "1973"], ["Mars Hill College", "CITY", "Mars Hill"]]
SAID = "Mars Hill College : JOINED : 1973 | Mars Hill College : CITY : Mars Hill"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    families.save_word_tokenizer(directory, token_types=True)
    return directory


@pytest.fixture
def tokenizer(directory):
    return HFTokenizer(directory)


@pytest.fixture
def build(tokenizer, tmp_path):
    """The dataset of rows in a JSON Lines file."""

    def build(rows, source, target, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return seq2seq_dataset(tokenizer, "json", source, target, data_files=str(path), **options)

    return build


def test_source_and_target_as_transformers_reads_them(build, directory):
    hf = AutoTokenizer.from_pretrained(directory)
    rows = [
        {"long": "the loop runs until it ends", "short": "it ends"},
        {"long": "b", "short": "a"},
    ]
    dataset = build(rows, "long", "short", prefix="a name : ")
    assert len(dataset) == 2
    for i, row in enumerate(rows):
        source = f"a name : {row['long']}"
        assert dataset.texts(i) == (source, row["short"])
        assert dataset[i] == {
            "tokens": hf(source)["input_ids"],
            "labels": hf(text_target=row["short"])["input_ids"],
        }
    assert dataset[-1] == dataset[1]
    with pytest.raises(IndexError):
        dataset[2]


def test_lengths_are_those_of_each_side(directory, tmp_path):
    path = tmp_path / "rows.csv"
    source = families.TEXT.replace(",", "")
    path.write_text(f"source,target\n{source},a name is bound to an object\n")
    options = {"source_column": "source", "target_column": "target", "data_files": str(path)}
    tokenizer = HFTokenizer(directory, 12)
    for max_target_len, length in ((None, 9), (5, 5)):
        sample = seq2seq_dataset(tokenizer, "csv", max_target_len=max_target_len, **options)[0]
        assert len(sample["tokens"]) == 12
        assert len(sample["labels"]) == length
        assert (sample["labels"][0], sample["labels"][-1]) == (families.START, families.END)


def test_nested_columns(build):
    dataset = build(WMT, "translation.de", "translation.en", prefix="German: ")
    assert [dataset.texts(i) for i in range(2)] == [
        ("German: der name", "a name"),
        ("German: das objekt", "an object"),
    ]


def test_rows_without_a_text_can_be_left_out(build):
    rows = [WMT[0], {"translation": {"de": "", "en": "a"}}, WMT[1]]
    dataset = build(rows, "translation.de", "translation.en", skip_empty=True)
    assert [dataset.texts(i)[1] for i in range(len(dataset))] == ["a name", "an object"]


@pytest.mark.parametrize(
    "annotations",
    [
        {"source": ["WikiTable", "person"], "text": ["A college.", "Another."]},
        [{"source": "WikiTable", "text": "A college."}, {"source": "person", "text": "Another."}],
    ],
    ids=["lists", "records"],
)
def test_triples_and_the_first_of_several_texts(build, annotations):
    rows = [{"tripleset": TRIPLES, "annotations": annotations}]
    dataset = build(rows, "tripleset", "annotations.text")
    assert dataset.texts(0) == (SAID, "A college.")


def test_the_first_of_several_texts(build):
    dataset = build([{"source": ["a", "b"], "target": ["c", "d"]}], "source", "target")
    assert dataset.texts(0) == ("a", "c")


def test_columns_of_the_hub(tokenizer, monkeypatch):
    features = Features(
        {
            "tripleset": List(List(Value("string"))),
            "annotations": List({"source": Value("string"), "text": Value("string")}),
        }
    )
    rows = [{"tripleset": TRIPLES, "annotations": [{"source": "s", "text": "A college."}]}]
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return Dataset.from_list(rows * 3, features=features)

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    dataset = seq2seq_dataset(
        tokenizer, "GEM/dart", "tripleset", "annotations.text", split="validation", max_samples=2,
        revision="main",
    )  # fmt: skip
    assert [dataset.texts(i) for i in range(len(dataset))] == [(SAID, "A college.")] * 2
    assert asked == [(("GEM/dart",), {"split": "validation", "revision": "main"})]


def test_from_a_config_to_a_batch(directory, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"source": "a name is bound", "target": "it ends"}] * 3))
    node = {
        "_component_": "kd_data.seq2seq_dataset",
        "source": "json",
        "data_files": [str(path)],
        "source_column": "source",
        "target_column": "target",
        "max_samples": 2,
    }
    dataset = instantiate(OmegaConf.create(node), HFTokenizer(directory))
    samples = list(map(dataset.__getitem__, range(len(dataset))))
    batch = collate_seq2seq(samples, pad_id=families.PAD, decoder_start_id=families.END)
    assert batch.labels.tolist() == [sample["labels"] for sample in samples]
    with pytest.raises(ValueError, match="tokens but 4 labels"):
        collate(samples, pad_id=families.PAD)


BAD = {
    "empty text": (
        [{"s": "a", "t": "b"}, {"s": " ", "t": "b"}],
        "s",
        "'s' is empty in 1 of 2 rows",
    ),
    "null text": ([{"s": "a", "t": "b"}, {"s": None, "t": "b"}], "s", "'s' is empty in 1 of 2"),
    "number": ([{"s": 7, "t": "b"}], "s", "row 1: s is 7; it must be a text"),
    "empty list": ([{"s": [], "t": "b"}], "s", r"row 1: s is \[\]; it must be a text"),
    "no record": ([{"s": [], "t": "b"}], "s.text", "row 1: there is no s.text"),
    "no such column": ([{"a": "a", "t": "b"}], "s", "no column 's' among a, t"),
    "no such field": (
        [{"s": {"de": "a"}, "t": "b"}],
        "s.en",
        r"no column 's\.en' among s\.de, t",
    ),
    "empty field": (
        [{"s": {"de": "a"}, "t": "b"}, {"s": {"de": ""}, "t": "b"}],
        "s.de",
        r"'s\.de' is empty in 1 of 2 rows, the first of them row 2; mend",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_end_in_one_line_that_names_the_file(build, case):
    rows, column, words = BAD[case]
    with pytest.raises(ValueError, match=rf"rows\.jsonl: .*{words}") as error:
        build(rows, column, "t")
    assert "\n" not in str(error.value)


def test_a_bad_list_is_named_when_its_row_is_read(build):
    dataset = build([{"s": ["a"], "t": "b"}, {"s": [""], "t": "b"}], "s", "t")
    with pytest.raises(ValueError, match=r"rows\.jsonl: row 2: s is ''; it must be a text"):
        dataset[1]


def test_bad_arguments(build):
    with pytest.raises(ValueError, match="max_samples is 0; it must be at least 1"):
        build(WMT, "translation.de", "translation.en", max_samples=0)
    dataset = build(WMT, "translation.de", "translation.en", max_target_len=1)
    with pytest.raises(ValueError, match=r"raise tokenizer\.max_seq_len or max_target_len"):
        dataset[0]


def test_a_tokenizer_without_markers_is_refused_at_once():
    with pytest.raises(ValueError, match=r"^object cannot put .* use tokenizer: .*hf_models\.tok"):
        seq2seq_dataset(object(), "absent", "source", "target")
