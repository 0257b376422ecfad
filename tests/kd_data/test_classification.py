"""Texts and classes from files of each format, and one line for each that has none."""

import json

import families
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from omegaconf import OmegaConf
from torchtune.config import instantiate
from transformers import AutoTokenizer

from hf_models import HFTokenizer
from kd_data import classification_dataset, mixture
from kd_data.datasets import sources

ROWS = [
    {"text": "a name is bound", "other": "to an object", "label": 1},
    {"text": "007", "other": "None", "label": 0},
    {"text": "numbers , strings", "other": "NA", "label": 2},
]
NAMES = ["yes", "no", "maybe"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    families.save_word_tokenizer(directory, token_types=True)
    return directory


@pytest.fixture
def tokenizer(directory):
    return HFTokenizer(directory)


def write(path, rows):
    """The rows as another program would write them; returns what a config calls them."""
    kind = path.suffix.removeprefix(".")
    frame = pd.DataFrame(rows)
    if kind in ("csv", "tsv"):
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    elif kind == "json":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        frame.to_parquet(path, index=False)
    source = {"tsv": "csv"}.get(kind, kind)
    return {"source": source, "data_files": str(path)}


def named(rows):
    return [row | {"label": NAMES[row["label"]]} for row in rows]


def classes(dataset):
    return [sample["labels"] for sample in dataset]


@pytest.mark.parametrize("kind", ["json", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("pair", [None, "other"])
def test_samples_are_texts_as_transformers_reads_them(tokenizer, directory, tmp_path, kind, pair):
    hf = AutoTokenizer.from_pretrained(directory)
    files = write(tmp_path / f"a.{kind}", ROWS)
    dataset = classification_dataset(tokenizer, text_column="text", text_pair_column=pair, **files)
    assert len(dataset) == len(ROWS)
    for row, sample in zip(ROWS, dataset, strict=True):
        expected = hf(row["text"], row[pair] if pair else None)
        assert sample == {
            "tokens": expected["input_ids"],
            "token_type_ids": expected["token_type_ids"],
            "labels": [row["label"]],
        }
    assert dataset.largest_label == 2


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_names_become_numbers(tokenizer, tmp_path, kind):
    files = write(tmp_path / f"a.{kind}", named(ROWS))
    dataset = classification_dataset(tokenizer, text_column="text", labels=NAMES, **files)
    assert classes(dataset) == [[1], [0], [2]]


def test_names_may_look_like_nothing_or_like_numbers(tokenizer, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,NA\nb,None\nc,NA\n")
    options = {"source": "csv", "data_files": str(path), "text_column": "text"}
    assert classes(classification_dataset(tokenizer, labels=["None", "NA"], **options)) == [
        [1], [0], [1]
    ]  # fmt: skip
    path.write_text("text,label\na,5\nb,1\n")
    assert classes(classification_dataset(tokenizer, labels=["1", "5"], **options)) == [[1], [0]]
    # Numbers all the same, of classes that have names.
    path.write_text("text,label\na,0\nb,1\n")
    assert classes(classification_dataset(tokenizer, labels=["b", "a"], **options)) == [[0], [1]]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.bool_(), pa.large_string()])
def test_classes_of_every_width(tokenizer, tmp_path, kind):
    labels = pa.array([1, 0, 1]).cast(kind)
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": labels}), tmp_path / "a.parquet")
    files = {"source": "parquet", "data_files": str(tmp_path / "a.parquet")}
    options = {"labels": ["false", "true"]} if kind == pa.bool_() else {}
    dataset = classification_dataset(tokenizer, text_column="text", **files, **options)
    assert classes(dataset) == [[1], [0], [1]]


@pytest.fixture
def hub(monkeypatch):
    """What the Hub gives, with its arguments."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=NAMES)})
    asked = []

    def load(labels):
        rows = {"text": ["a"] * len(labels), "label": labels}

        def load_dataset(*args, **kwargs):
            asked.append((args, kwargs))
            return Dataset.from_dict(rows, features=features)

        monkeypatch.setattr(sources, "load_dataset", load_dataset)
        return asked

    return load


def test_class_labels_of_the_hub(tokenizer, hub):
    asked = hub([2, 0])
    dataset = classification_dataset(tokenizer, "glue", "text", name="mnli", split="train[:10%]")
    assert classes(dataset) == [[2], [0]]
    assert asked == [(("glue",), {"split": "train[:10%]", "name": "mnli"})]
    same = classification_dataset(tokenizer, "glue", "text", labels=NAMES)
    assert classes(same) == classes(dataset)
    with pytest.raises(ValueError, match="an order of its own: yes, no, maybe; leave out labels"):
        classification_dataset(tokenizer, "glue", "text", labels=["no", "yes", "maybe"])


def test_a_split_without_labels(tokenizer, hub):
    hub([-1, -1])
    with pytest.raises(
        ValueError, match=r"^glue: column 'label' is -1 everywhere: this split has no labels; take"
    ):
        classification_dataset(tokenizer, "glue", "text", split="test")
    hub([1, -1])
    with pytest.raises(ValueError, match="is -1 in row 2, but classes are counted from 0; leave"):
        classification_dataset(tokenizer, "snli", "text")


def test_the_hub_out_of_reach(tokenizer, monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach\n'glue'")

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"^glue: cannot read rows: Couldn't reach 'glue'$"):
        classification_dataset(tokenizer, "glue", "sentence", name="sst2")


def test_from_a_config(directory, tmp_path):
    node = {
        "_component_": "kd_data.classification_dataset",
        "source": "json",
        "data_files": [write(tmp_path / f"{i}.json", named(ROWS))["data_files"] for i in "ab"],
        "text_column": "text",
        "text_pair_column": "other",
        "labels": NAMES,
        "max_samples": 4,
    }
    dataset = instantiate(OmegaConf.create(node), HFTokenizer(directory, 8))
    assert classes(dataset) == [[1], [0], [2], [1]]
    assert max(len(sample["tokens"]) for sample in dataset) == 8
    assert dataset[-1] == dataset[3]
    with pytest.raises(IndexError):
        dataset[4]


def test_files_of_splits_and_patterns(tokenizer, tmp_path):
    for name in ("train_1", "train_2", "val"):
        write(tmp_path / f"{name}.json", ROWS)
    files = {"train": [str(tmp_path / "train_*.json")], "val": str(tmp_path / "val.json")}
    options = {"source": "json", "text_column": "text", "data_files": OmegaConf.create(files)}
    assert len(classification_dataset(tokenizer, **options)) == 6
    assert len(classification_dataset(tokenizer, split="val", **options)) == 3
    options["data_files"] = tmp_path / "val.json"
    assert len(classification_dataset(tokenizer, **options)) == 3


def test_whoever_says_how_csv_is_to_be_read_is_heard(tokenizer, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("caf\xe9;1\nloop;0\n", encoding="latin-1")
    dataset = classification_dataset(
        tokenizer, "csv", "text", data_files=str(path), sep=";", encoding="latin-1",
        column_names=["text", "label"],
    )  # fmt: skip
    assert classes(dataset) == [[1], [0]]
    path.write_text("text;label\n007;1\n")
    dataset = classification_dataset(tokenizer, "csv", "text", data_files=str(path), delimiter=";")
    assert dataset[0]["tokens"] == tokenizer.encode_text("007")["tokens"]


def test_only_what_is_kept_need_be_right(tokenizer, tmp_path):
    files = write(tmp_path / "a.json", [*ROWS, {"text": "", "other": "a", "label": -1}])
    assert len(classification_dataset(tokenizer, text_column="text", max_samples=3, **files)) == 3
    assert len(classification_dataset(tokenizer, text_column="text", split="train[:75%]", **files))


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_rows_without_a_text_can_be_left_out(tokenizer, tmp_path, kind):
    rows = [ROWS[0], ROWS[1] | {"other": ""}, ROWS[2], ROWS[1] | {"text": None}, ROWS[1]]
    files = write(tmp_path / f"a.{kind}", rows)
    options = files | {"text_column": "text", "text_pair_column": "other", "skip_empty": True}
    kept = [ROWS[0], ROWS[2], ROWS[1]]
    for max_samples in (None, 2):
        dataset = classification_dataset(tokenizer, max_samples=max_samples, **options)
        assert list(dataset) == [
            tokenizer.encode_text(row["text"], row["other"]) | {"labels": [row["label"]]}
            for row in kept[:max_samples]
        ]
    files = write(tmp_path / f"b.{kind}", [ROWS[0] | {"text": " "}])
    with pytest.raises(ValueError, match="no row has a text in text and other"):
        classification_dataset(tokenizer, **options | files)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def row(text, label):
    return {"text": text, "label": label}


BAD = {
    "empty text": (
        lines(row("a", 1), row(" \n", 0)),
        {},
        ["'text' is empty in 1 of 2 rows, the first of them row 2", "skip_empty: true"],
    ),
    "null text": (lines(row("a", 1), row(None, 0)), {}, ["'text' is empty in 1 of 2 rows"]),
    "number for text": (lines(row(7, 1)), {}, ["'text' holds something else than text: int64"]),
    "null class": (lines(row("a", 1), row("b", None)), {}, ["'label' is empty in row 2"]),
    "fraction": (lines(row("a", 0.5)), {}, ["'label' holds double", "whole number or a name"]),
    "negative": (lines(row("a", 1), row("b", -2)), {}, ["'label' is -2 in row 2"]),
    "names alone": (lines(row("a", "x"), row("b", "1")), {}, ["names (x, 1); give labels: [...]"]),
    "unknown name": (
        lines(row("a", "x"), row("b", "z")),
        {"labels": ["x", "y"]},
        ["'label' is 'z' in row 2; labels has x, y"],
    ),
    "number beyond names": (
        lines(row("a", 1), row("b", 2)),
        {"labels": ["x", "y"]},
        ["'label' is 2 in row 2, but labels has 2 names"],
    ),
    "missing class": (lines(row("a", 1)), {"label_column": "c"}, ["no column 'c' among text, lab"]),
    "missing pair": (lines(row("a", 1)), {"text_pair_column": "b"}, ["no column 'b' among text"]),
    "unknown split": (lines(row("a", 1)), {"split": "dev"}, ['Unknown split "dev"']),
    "no rows": ("[]", {}, ["cannot read rows"]),
    "empty file": ("", {}, ["is empty"]),
    "broken": ("{} {", {}, ["cannot read rows"]),
    "strange option": (lines(row("a", 1)), {"nam": "x"}, ["cannot read rows", "'nam'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_end_in_one_line_that_names_the_file(tokenizer, tmp_path, caplog, case):
    content, options, words = BAD[case]
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"a\.jsonl") as error:
        classification_dataset(tokenizer, "json", "text", data_files=str(path), **options)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": [False, "no"]}, "labels has False, which is no text; put it in quotes"),
        ({"labels": ["a", "a"]}, "labels has a name twice: a, a"),
        ({"max_samples": 0}, "max_samples is 0; it must be at least 1"),
        ({"data_files": None}, "source is json, so data_files must be set"),
    ],
)
def test_bad_arguments(tokenizer, tmp_path, options, words):
    files = write(tmp_path / "a.json", ROWS) | options
    with pytest.raises(ValueError, match=words):
        classification_dataset(tokenizer, text_column="text", **files)


def test_a_broken_csv_file(tokenizer, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,b,c\n")
    with pytest.raises(ValueError, match=r"a\.csv: cannot read rows: .*fields in line 2"):
        classification_dataset(tokenizer, "csv", "text", data_files=str(path))


@pytest.mark.parametrize("name", ["absent.json", "*.json"])
def test_missing_files(tokenizer, tmp_path, name):
    with pytest.raises(FileNotFoundError) as error:
        classification_dataset(tokenizer, "json", "text", data_files=str(tmp_path / name))
    assert str(error.value) == f"{tmp_path / name}: no such file; check the path"


def test_a_tokenizer_without_markers_is_refused_at_once():
    with pytest.raises(ValueError, match=r"^object cannot put .* use tokenizer: .*hf_models\.tok"):
        classification_dataset(object(), "absent", "text")


def test_a_mixture_knows_the_largest_class(tokenizer, tmp_path):
    few = write(tmp_path / "few.json", ROWS[:2]) | {"text_column": "text"}
    many = write(tmp_path / "many.json", ROWS) | {"text_column": "text"}
    datasets = [classification_dataset(tokenizer, **one) for one in (few, many)]
    assert mixture(tokenizer, [datasets[0]], [1]).largest_label == 1
    assert mixture(tokenizer, [*datasets, [{"tokens": [1]}]], [1, 1, 1]).largest_label == 2
    assert mixture(tokenizer, [[{"tokens": [1]}]], [1]).largest_label is None


def test_film_snippets_become_samples(movie_snippets_dir, embedded_bert_dir):
    dataset = classification_dataset(
        HFTokenizer(embedded_bert_dir, 128),
        "json",
        "text",
        data_files=str(movie_snippets_dir / "heldout.jsonl"),
    )
    assert (len(dataset), dataset.largest_label) == (1500, 1)
    assert torch.tensor(classes(dataset)).float().mean() == pytest.approx(0.5, abs=0.05)
