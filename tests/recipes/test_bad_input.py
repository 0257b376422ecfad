"""A mistake ends in one clear line, a non-zero exit, and an untouched output directory."""

import json
import shutil

import pytest
import tiny


def empty_file(path):
    path.write_text("")
    return path


def other_tokenizer(directory, teacher):
    """A copy of the teacher whose tokens sit at other ids."""
    shutil.copytree(teacher, directory)
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    return directory


def without_weights(directory, student):
    shutil.copytree(student, directory)
    (directory / "model.safetensors").unlink()
    return directory


# name -> (overrides, given the test's folder and the small models; words that the line must hold)
BAD = {
    "misspelt key": (lambda *_: ["epcohs=3"], ["epcohs", "epochs"]),
    "misspelt nested key": (lambda *_: ["loss_scaling.enabeld=true"], ["enabeld", "enabled"]),
    "misspelt argument": (lambda *_: ["model.lora_rnak=8"], ["model.lora_rnak", "lora_rank"]),
    "misspelt component": (
        lambda *_: ["kd_loss._component_=kd_losses.ForwardKLoss"],
        ["kd_loss", "ForwardKLoss"],
    ),
    "wrong type": (lambda *_: ["batch_size=many"], ["batch_size", "many"]),
    "missing directory": (
        lambda tmp, _: [f"teacher_model.checkpoint_dir={tmp}/nowhere"],
        ["nowhere"],
    ),
    "missing weights": (
        lambda tmp, run: [
            f"checkpointer.checkpoint_dir={without_weights(tmp / 'bare', run['student'])}"
        ],
        ["bare", "safetensors"],
    ),
    "other vocabulary": (
        lambda tmp, run: [
            f"teacher_checkpointer.checkpoint_dir={other_tokenizer(tmp / 'other', run['teacher'])}"
        ],
        ["vocabular", "disagree"],
    ),
    "layer out of range": (lambda *_: ["layer_mapping=[[0,6]]"], ["6", "layer"]),
    "misspelt strategy": (lambda *_: ["layer_mapping=forwrad"], ["forwrad", "forward"]),
    "empty dataset": (
        lambda tmp, _: [f"dataset.data_files={empty_file(tmp / 'empty.jsonl')}"],
        ["dataset"],
    ),
    "missing dataset": (lambda tmp, _: [f"dataset.data_files={tmp}/no.jsonl"], ["no.jsonl"]),
    "all labels masked": (
        lambda tmp, _: [f"dataset.data_files={tiny.save_texts(tmp / 'one.jsonl', ['', ''])}"],
        ["dataset", "label"],
    ),
    "too few samples": (lambda *_: ["batch_size=64"], ["dataset", "batch_size"]),
    "fp16": (lambda *_: ["dtype=fp16"], ["dtype", "fp16", "bf16"]),
    "unwritable output": (lambda tmp, _: [f"output_dir={tmp}/run.yaml/out"], ["output_dir"]),
    "unknown device": (lambda *_: ["device=tpu9"], ["device"]),
    "kd_loss of another library": (
        lambda *_: ["kd_loss._component_=torchtune.modules.loss.ForwardKLLoss"],
        ["kd_loss", "kd_losses"],
    ),
    "loss that is no cross-entropy": (
        lambda *_: ["loss._component_=torch.nn.MSELoss"],
        ["loss", "cross-entropy"],
    ),
    "missing config": (lambda *_: ["--config", "no.yaml"], ["no.yaml"]),
}


@pytest.mark.parametrize("case", BAD)
def test_one_clear_line(tune_run, config_file, tiny_run, tmp_path, case):
    make, words = BAD[case]
    overrides = make(tmp_path, tiny_run.directories)
    code, _, err = tune_run("kd_single_device", config_file, *overrides)
    assert code != 0
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") or "error:" in last
    assert all(word in last for word in words), last
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
