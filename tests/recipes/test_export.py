"""What an exported student carries: the tokenizer it learnt with, and no path of the machine."""

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from tiny import CHATML
from transformers import AutoModelForCausalLM, AutoTokenizer

CHAT = [{"role": "user", "content": "What is a name?"}]
QUICK = ("max_steps_per_epoch=1", "layer_mapping=none")


@pytest.fixture
def student(tiny_run, tmp_path):
    """A copy of the student's directory, to change."""
    return shutil.copytree(tiny_run.directories["student"], tmp_path / "student")


def tokenizer_files(directory):
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return {name: (directory / name).read_bytes() for name in names if (directory / name).exists()}


def uses(student):
    return [f"{key}.checkpoint_dir={student}" for key in ("model", "checkpointer")]


def test_a_student_without_tokenizer_files_gets_them(
    tune_run, config_file, tiny_run, student, tmp_path
):
    for name in tokenizer_files(student):
        (student / name).unlink()
    code, _, err = tune_run("kd_single_device", config_file, *uses(student), *QUICK)
    assert code == 0, err
    theirs = tokenizer_files(tiny_run.directories["teacher"])
    assert tokenizer_files(tmp_path / "out" / "epoch_0") == theirs
    assert "not compared" not in err


def test_the_chat_template_is_the_one_trained_with(
    tune_run, config_file, tiny_run, student, tmp_path
):
    (student / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    (student / "LICENSE").write_text("theirs")
    settings = json.loads((student / "generation_config.json").read_text()) | {"top_k": 7}
    (student / "generation_config.json").write_text(json.dumps(settings))
    code, _, err = tune_run("kd_single_device", config_file, *uses(student), *QUICK)
    assert code == 0, err
    out = tmp_path / "out" / "epoch_0"
    trained, own = (
        AutoTokenizer.from_pretrained(path).apply_chat_template(CHAT, tokenize=False)
        for path in (tiny_run.directories["teacher"], student)
    )
    assert trained != own
    exported = AutoTokenizer.from_pretrained(out)
    assert exported.apply_chat_template(CHAT, tokenize=False) == trained
    assert (out / "LICENSE").read_text() == "theirs"
    assert json.loads((out / "generation_config.json").read_text())["top_k"] == 7


def test_an_adapter_alone_carries_it_too(tune_run, config_file, tiny_run, student, tmp_path):
    (student / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    overrides = [*uses(student), *QUICK, "save_adapter_weights_only=true"]
    code, _, err = tune_run("kd_single_device", config_file, *overrides)
    assert code == 0, err
    files = tokenizer_files(tmp_path / "out" / "epoch_0" / "adapter")
    assert files == tokenizer_files(tiny_run.directories["teacher"])
    assert files["chat_template.jinja"].decode() == CHATML


@pytest.fixture
def from_here(tune_run, config_file, tiny_run, tmp_path, monkeypatch):
    """A run whose directories are given as absolute paths, from the folder ``where``."""

    def run(where, student):
        for role, directory in (("student", student), ("teacher", tiny_run.directories["teacher"])):
            shutil.copytree(directory, tmp_path / "models" / role)
            write_paths_into(tmp_path / "models" / role)
        roles = {"teacher_model": "teacher", "teacher_checkpointer": "teacher",
                 "model": "student", "checkpointer": "student", "tokenizer": "teacher"}  # fmt: skip
        overrides = [
            f"{key}.checkpoint_dir={tmp_path}/models/{role}" for key, role in roles.items()
        ]
        data = "dataset_val={_component_: torchtune.datasets.text_completion_dataset, "
        data += f"source: json, split: train, data_files: {tiny_run.texts}}}"
        monkeypatch.chdir(where)
        code, _, err = tune_run("kd_single_device", config_file, *overrides, *QUICK, data)
        assert code == 0, err
        return tmp_path / "out"

    return run


def write_paths_into(directory):
    """What some versions of transformers leave behind in a directory."""
    paths = {
        "config.json": {"_name_or_path": str(directory)},
        "generation_config.json": {"_name_or_path": str(directory)},
        "tokenizer_config.json": {
            "name_or_path": str(directory),
            "special_tokens_map_file": f"{directory}/special_tokens_map.json",
        },
    }
    for name, settings in paths.items():
        old = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(old | settings))


def test_no_exported_file_holds_a_path_of_the_machine(
    from_here, student, tmp_path, tmp_path_factory
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = from_here(elsewhere, student)
    exported = [path for name in ("epoch_0", "best") for path in (out / name).rglob("*")]
    names = {path.name for path in exported}
    assert {"README.md", "config.json", "adapter_config.json", "tokenizer_config.json"} <= names
    machine = str(tmp_path_factory.getbasetemp()).encode()
    assert machine in (out / "config.yaml").read_bytes()
    for path in exported:
        assert path.is_dir() or machine not in path.read_bytes(), path
    card = (out / "epoch_0" / "README.md").read_text()
    assert "checkpoint_dir: student" in card
    assert 'from_pretrained("out/epoch_0")' in card
    assert AutoTokenizer.from_pretrained(out / "epoch_0").apply_chat_template(CHAT)

    settings = json.loads((out / "epoch_0/adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None
    check_adapter(
        PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(student), out / "epoch_0" / "adapter"
        ),
        out,
    )


def test_the_adapter_finds_its_base_from_the_folder_of_the_run(from_here, student, tmp_path):
    out = from_here(tmp_path, student)
    card = (out / "epoch_0" / "README.md").read_text()
    assert 'from_pretrained("models/student")' in card
    assert 'PeftModel.from_pretrained(base, "out/epoch_0/adapter")' in card
    check_adapter(AutoPeftModelForCausalLM.from_pretrained("out/epoch_0/adapter"), out)


@torch.no_grad()
def check_adapter(adapted, out):
    """That base and adapter are the merged student."""
    tokens = torch.arange(12)[None]
    merged = AutoModelForCausalLM.from_pretrained(out / "epoch_0")
    torch.testing.assert_close(
        adapted.eval()(tokens).logits, merged(tokens).logits, rtol=1e-4, atol=1e-5
    )
    adapter = load_file(out / "epoch_0" / "adapter" / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
