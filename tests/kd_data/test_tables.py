"""Rows of text from files of each format, and one line for each file that is none."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kd_data import prompt_completion_dataset
from kd_data.datasets.tables import read_texts

COLUMNS = ("prompt", "completion")
# What a table of texts may hold and a guess of types would spoil.
ROWS = [
    {"prompt": "007", "completion": "1.50"},
    {"prompt": "None", "completion": "NA"},
    {"prompt": "a, b", "completion": ' "quoted" '},
    {"prompt": "two\nlines", "completion": "naïve\ttab"},
]


def write(path, rows):
    """The rows as another program would write them."""
    frame = pd.DataFrame(rows)
    name = path.name
    if ".csv" in name or ".tsv" in name:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    elif ".jsonl" in name:
        frame.to_json(path, orient="records", lines=True)
    elif ".json" in name:
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        frame.to_parquet(path, index=False)
    return path


@pytest.mark.parametrize(
    "name",
    ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "A.CSV", "a.csv.gz", "a.jsonl.gz",
     "a.tsv.xz"],
)  # fmt: skip
def test_every_format_gives_the_same_texts(tmp_path, name):
    path = tmp_path / name
    write(path if name != "A.CSV" else tmp_path / "a.csv", ROWS)
    if name == "A.CSV":
        (tmp_path / "a.csv").rename(path)
    table = read_texts([path], "train", COLUMNS)
    assert [dict(row) for row in table] == ROWS


def test_numbers_in_csv_are_texts(tmp_path):
    """Also where a guess would differ from one block of rows to the next."""
    rows = [{"prompt": f"{i:05}", "completion": str(i)} for i in range(12000)]
    rows.append({"prompt": "word", "completion": "1e3"})
    table = read_texts([write(tmp_path / "a.csv", rows)], "train", COLUMNS)
    assert table["prompt"][:2] == ["00000", "00001"]
    assert dict(table[12000]) == rows[-1]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\nA, name\n", encoding="utf-8-sig")
    assert dict(read_texts([path], "train", COLUMNS)[0]) == {"prompt": "A", "completion": " name"}


def test_files_of_one_format_follow_each_other(tmp_path):
    paths = [write(tmp_path / f"{i}.csv", [row]) for i, row in enumerate(ROWS)]
    assert [dict(row) for row in read_texts(paths, "train", COLUMNS)] == ROWS
    assert len(read_texts(paths, "train[:50%]", COLUMNS)) == 2
    both = [write(tmp_path / "a.json", ROWS), write(tmp_path / "b.jsonl", ROWS)]
    assert len(read_texts(both, "train", COLUMNS)) == 8


def test_long_strings_of_parquet_are_texts(tmp_path):
    """As polars writes them."""
    schema = pa.schema([(column, pa.large_string()) for column in COLUMNS])
    pq.write_table(pa.Table.from_pylist(ROWS, schema=schema), tmp_path / "a.parquet")
    assert read_texts([tmp_path / "a.parquet"], "train", COLUMNS)[0] == ROWS[0]


def test_csv_becomes_samples(tmp_path, tokenizer):
    sample = prompt_completion_dataset(tokenizer, write(tmp_path / "a.csv", ROWS))[0]
    assert tokenizer.decode(sample["tokens"]) == "0071.50<|im_end|>"


def parquet(**columns):
    def write_to(path):
        pq.write_table(pa.table(columns), path)

    return write_to


def text(content):
    return lambda path: path.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


HEADER = "prompt,completion\n"
BAD = {
    "empty": ("a.csv", text(""), ["a.csv is empty"]),
    "no rows in CSV": ("a.csv", text(HEADER), ["cannot read rows", "has none"]),
    "no rows in Parquet": (
        "a.parquet",
        parquet(prompt=pa.array([], pa.string()), completion=pa.array([], pa.string())),
        ["cannot read rows", "has none"],
    ),
    "no header": ("a.csv", text("What?,That\nWho?,She\n"), ["'prompt'", "among What?, That"]),
    "missing column in CSV": ("a.csv", text("prompt,answer\na,b\n"), ["'completion'", "answer"]),
    "missing column in Parquet": ("a.parquet", parquet(prompt=["a"]), ["'completion'", "prompt"]),
    "tabs in CSV": ("a.csv", text("prompt\tcompletion\na\tb\n"), ["no column 'prompt'"]),
    "comma without quotes": ("a.csv", text(f"{HEADER}a,b\na,b,c\n"), ["fields in line 3"]),
    "comma without quotes in the first row": (
        "a.csv",
        text(f"{HEADER}a,b,c\nd,e,f\n"),
        ["fields in line 2"],
    ),
    "line break without quotes": (
        "a.csv",
        text(f"{HEADER}a,b\na\nb,c\n"),
        ["'completion'", "nothing in 1 of 3 rows", "row 2"],
    ),
    "quote without end": ("a.csv", text(f'{HEADER}a,"b\n'), ["EOF inside string"]),
    "other encoding": ("a.csv", text(HEADER.encode() + b"caf\xe9,b\n"), ["utf-8"]),
    "empty field": ("a.tsv", text("prompt\tcompletion\na\t\n"), ["'completion'", "nothing in 1"]),
    "broken Parquet": ("a.parquet", text("PAR1 and no more"), ["cannot read rows"]),
    "numbers in Parquet": (
        "a.parquet",
        parquet(prompt=["a"], completion=[3]),
        ["'completion'", "something else than text", "int64"],
    ),
    "lists in Parquet": (
        "a.parquet",
        parquet(prompt=[["a"]], completion=["b"]),
        ["'prompt'", "something else than text"],
    ),
    "nulls in Parquet": (
        "a.parquet",
        parquet(prompt=["a", "b", None, None], completion=["b"] * 4),
        ["'prompt'", "nothing in 2 of 4 rows", "row 3"],
    ),
    "nulls in JSON": (
        "a.jsonl",
        text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": null}\n'),
        ["'completion'", "row 2"],
    ),
    "unknown ending": ("a.xlsx", text("PK"), [".csv, .tsv, .json, .jsonl, .parquet"]),
    "no ending": ("rows", text(HEADER), [".csv, .tsv, .json, .jsonl, .parquet"]),
    "nothing but compressed": ("a.gz", text("x"), [".csv, .tsv, .json, .jsonl, .parquet"]),
    "no gzip": ("a.csv.gz", text(HEADER), ["cannot read rows"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_ends_in_one_line_that_names_it(tmp_path, caplog, case):
    name, make, words = BAD[case]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=name) as error:
        read_texts([tmp_path / name], "train", COLUMNS)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not caplog.records


def test_formats_are_not_mixed(tmp_path):
    paths = [write(tmp_path / name, ROWS) for name in ("a.csv", "b.jsonl")]
    with pytest.raises(ValueError, match=r"^\S*b\.jsonl has another format than \S*a\.csv: give"):
        read_texts(paths, "train", COLUMNS)


def test_csv_files_with_other_columns_are_refused(tmp_path):
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path, header in zip(paths, (HEADER, "completion,prompt\n"), strict=True):
        path.write_text(f"{header}a,b\n")
    with pytest.raises(
        ValueError, match=r"b\.csv has the columns completion, prompt, but .*a\.csv"
    ):
        read_texts(paths, "train", COLUMNS)
