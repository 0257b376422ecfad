"""What a config names twice: where two directories may differ, and where not."""

import json
import shutil

import pytest
import tiny
from omegaconf import OmegaConf
from torchtune.models.qwen2 import qwen2_tokenizer

from kd_training.preflight.same_model import (
    _largest_id,
    _other_ids,
    check_model_configs,
    check_output,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("same") / "model", num_hidden_layers=1)


def two_directories(model, tmp_path, change):
    copy = shutil.copytree(model, tmp_path / "copy")
    settings = json.loads((copy / "config.json").read_text())
    change(settings)
    (copy / "config.json").write_text(json.dumps(settings))
    keys = {"model": model, "checkpointer": copy}
    return OmegaConf.create({key: {"checkpoint_dir": str(path)} for key, path in keys.items()})


def written_by_an_older_transformers(settings):
    settings |= settings.pop("rope_parameters")
    del settings["rope_type"], settings["dtype"]
    settings |= {"torch_dtype": "bfloat16", "transformers_version": "4.40.0"}
    settings["_name_or_path"] = "org/model"


def test_one_model_may_be_described_in_two_ways(model, tmp_path):
    cfg = two_directories(model, tmp_path, written_by_an_older_transformers)
    check_model_configs(cfg)


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta", "tie_word_embeddings"])
def test_what_changes_a_number_is_refused(model, tmp_path, name):
    def change(settings):
        written_by_an_older_transformers(settings)
        settings[name] = {"rms_norm_eps": 1e-3, "rope_theta": 5e5}.get(name, False)

    shown = "rope_parameters" if name == "rope_theta" else name
    with pytest.raises(ValueError, match=rf"model\.checkpoint_dir.*checkpointer.*{shown} is"):
        check_model_configs(two_directories(model, tmp_path, change))


def test_one_output_directory_in_two_spellings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("out")
    checkpointer = {"_component_": "hf_models.HFCheckpointer"}
    for spelling in ("out", "./out/", f"{tmp_path}/out", "link", "${output_dir}"):
        node = checkpointer | {"output_dir": spelling}
        check_output(OmegaConf.create({"output_dir": "out", "checkpointer": node}))


def test_torchtunes_tokenizer_over_the_models_own_files(model, tmp_path):
    content = json.loads((model / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(content["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in content["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    tokenizer = qwen2_tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert _other_ids(tokenizer, str(model)) is None
    # Qwen2's special tokens are the last of its 151646, whatever else a file holds.
    assert _largest_id(tokenizer) == 151645
