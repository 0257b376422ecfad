"""The command line, end to end, on a small random model."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks import TaskManager
from processes import GUARD
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

TENSORBOARD = "torchtune.training.metric_logging.TensorBoardLogger"


def test_a_run_from_any_folder_leaves_what_it_promises(config_file, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    tune = Path(sys.executable).with_name("tune")
    logs = tmp_path / "out" / "logs"
    loggers = f"[{{_component_: {TENSORBOARD}, log_dir: {logs}}},"
    loggers += f"{{_component_: torchtune.training.metric_logging.WandBLogger, dir: {tmp_path}}}]"
    command = [tune, "run", "kd_single_device", "--config", config_file, "epochs=2"]
    command += [f"metric_logger={loggers}", "run_val_every_n_steps=1", *validation(config_file)]
    command += ["log_peak_memory_stats=true", "profiler.enabled=true"]
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    result = subprocess.run(
        command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=GUARD
    )
    assert result.returncode == 0, result.stderr
    assert "step 4/4 | total" in result.stdout
    out = tmp_path / "out"
    for folder in ("epoch_0", "epoch_1", "best"):
        names = {path.name for path in (out / folder).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "adapter"} <= names
        assert not any("adapter" in name for name in names - {"adapter"})
        assert {path.name for path in (out / folder / "adapter").iterdir()} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
    assert yaml.safe_load((out / "config.yaml").read_text())["epochs"] == 2
    assert (logs / "loss.png").read_bytes().startswith(b"\x89PNG")
    check_metrics(logs)
    assert list((tmp_path / "wandb").glob("offline-run-*")), "W&B wrote nothing"


def validation(config_file):
    data = yaml.safe_load(config_file.read_text())["dataset"]["data_files"]
    keys = {
        "_component_": "torchtune.datasets.text_completion_dataset",
        "source": "json",
        "data_files": data,
        "split": "train",
    }
    return [f"dataset_val.{key}={value}" for key, value in keys.items()]


def check_metrics(logs):
    records = [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if "total" in r]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    names = {"ce", "kd", "ir", "ir/s0-t2", "ir/s1-t5", "grad_norm", "lr", "tokens_per_second"}
    assert names | {"peak_memory_gib"} <= set(steps[0])
    for r in steps:
        assert r["total"] == pytest.approx(r["ce"] + r["kd"] + 3 * r["ir"], rel=1e-5)
    val = [r["val/total"] for r in records if "val/total" in r]
    assert len(val) == 4
    assert val[-1] < val[0]
    events = EventAccumulator(str(next(logs.glob("run_0_*"))))
    events.Reload()
    logged = [event.tensor_proto.float_val[0] for event in events.Tensors("total")]
    assert logged == pytest.approx([r["total"] for r in steps], rel=1e-6)


def test_merged_weights_are_base_plus_adapter(tune_run, config_file, tiny_run, tmp_path):
    code, _, err = tune_run("kd_single_device", config_file)
    assert code == 0, err
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "epoch_0")
    base = AutoModelForCausalLM.from_pretrained(tiny_run.directories["student"])
    adapter = load_file(tmp_path / "out" / "epoch_0" / "adapter" / "adapter_model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "epoch_0")
    tokens = tokenizer("A class definition makes an object.", return_tensors="pt").input_ids

    before = base(tokens).logits
    for name, module in base.named_modules():
        a = adapter.get(f"base_model.model.{name}.lora_A.weight")
        if a is not None:
            b = adapter.pop(f"base_model.model.{name}.lora_B.weight")
            adapter.pop(f"base_model.model.{name}.lora_A.weight")
            with torch.no_grad():
                module.weight += 8 / 4 * b @ a  # lora_alpha / lora_rank
    assert not adapter, "every adapter weight belongs to a layer of the base"
    assert (base(tokens).logits - before).abs().max() > 1e-2, "training has changed something"
    torch.testing.assert_close(merged(tokens).logits, base(tokens).logits, rtol=1e-4, atol=1e-5)


def test_lm_eval_opens_the_merged_directory_as_it_stands(
    tune_run, config_file, tmp_path, monkeypatch
):
    assert tune_run("kd_single_device", config_file, "max_steps_per_epoch=1")[0] == 0
    texts = tmp_path / "held_out.jsonl"
    texts.write_text('{"text": "Names refer to objects."}\n{"text": "Names are bound."}\n')
    task = {
        "task": "tiny_perplexity",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(texts)}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(yaml.safe_dump(task))
    command = ["lm_eval", "--model", "hf", "--model_args"]
    command += [f"pretrained={tmp_path / 'out' / 'epoch_0'},dtype=float32", "--device", "cpu"]
    command += ["--tasks", "tiny_perplexity", "--include_path", str(tmp_path / "tasks")]
    command += ["--output_path", str(tmp_path / "eval")]
    monkeypatch.setattr(sys, "argv", command)
    # Reading its own thousands of tasks takes most of the time.
    only_ours = partial(TaskManager, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", only_ours)
    cli_evaluate()
    results = json.loads(next((tmp_path / "eval").rglob("results_*.json")).read_text())["results"]
    assert 1 < results["tiny_perplexity"]["word_perplexity,none"] < float("inf")


def test_a_second_run_moves_the_first_one_aside(tune_run, config_file, tmp_path):
    for epochs in (1, 2):
        override = f"epochs={epochs}"
        code, out, _ = tune_run("kd_single_device", config_file, override, "max_steps_per_epoch=1")
        assert code == 0
    assert "is now in" in out
    earlier = tmp_path / "out" / "previous" / "1"
    assert yaml.safe_load((earlier / "config.yaml").read_text())["epochs"] == 1
    assert (earlier / "epoch_0" / "model.safetensors").exists()
    assert len((tmp_path / "out" / "logs" / "metrics.jsonl").read_text().splitlines()) == 2


STRATEGIES = {
    "forward": {"ir/s0-t2", "ir/s1-t5"},
    "reverse": {"ir/s0-t5", "ir/s1-t2"},
    "all_to_one": {"ir/s0-t2", "ir/s1-t2"},
    "{_component_: layer_mapping.random, seed: 1}": {"ir/s0-t5", "ir/s1-t2"},
    "last": {"ir/s1-t5"},
    "none": set(),
    "[[0,1],[1,-1]]": {"ir/s0-t1", "ir/s1-t5"},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_layer_mapping_is_one_override(tune_run, config_file, tmp_path, strategy):
    code, _, err = tune_run("kd_single_device", config_file, f"layer_mapping={strategy}")
    assert code == 0, err
    record = json.loads((tmp_path / "out/logs/metrics.jsonl").read_text().splitlines()[0])
    pairs = {key for key in record if key.startswith("ir/")}
    assert pairs == STRATEGIES[strategy]


def test_in_order_random_draws_anew_each_epoch(tune_run, config_file, tmp_path):
    overrides = ["layer_mapping=in_order_random", "epochs=3", "max_steps_per_epoch=1"]
    assert tune_run("kd_single_device", config_file, *overrides)[0] == 0
    lines = (tmp_path / "out/logs/metrics.jsonl").read_text().splitlines()
    drawn = [{key for key in json.loads(line) if key.startswith("ir/")} for line in lines]
    assert len(drawn) == 3
    assert any(one != drawn[0] for one in drawn)


def test_full_finetuning_without_an_adapter(tune_run, config_file, tiny_run, tmp_path):
    student = tiny_run.directories["student"]
    config = yaml.safe_load(config_file.read_text())
    config["model"] = {"_component_": "hf_models.decoder", "checkpoint_dir": str(student)}
    config_file.write_text(yaml.safe_dump(config))
    code, _, err = tune_run("kd_single_device", config_file)
    assert code == 0, err
    before = load_file(student / "model.safetensors")
    after = load_file(tmp_path / "out" / "epoch_0" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_torchtunes_own_builders_and_checkpointer(tune_run, config_file, tmp_path, dtype):
    directory = tiny.save_model(tmp_path / "qwen2", "qwen2", num_hidden_layers=2)
    sizes = {
        "vocab_size": AutoConfig.from_pretrained(directory).vocab_size,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "embed_dim": 32,
        "intermediate_dim": 48,
        "max_seq_len": 128,
        "norm_eps": 1e-6,
        "rope_base": 10000,
        "tie_word_embeddings": True,
    }
    lora = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 4, "lora_alpha": 8}
    config = yaml.safe_load(config_file.read_text())
    config["model"] = {"_component_": "torchtune.models.qwen2.lora_qwen2", **sizes, **lora}
    config["teacher_model"] = {"_component_": "torchtune.models.qwen2.qwen2", **sizes}
    checkpointer = {
        "_component_": "torchtune.training.FullModelHFCheckpointer",
        "checkpoint_dir": str(directory),
        "checkpoint_files": ["model.safetensors"],
        "model_type": "QWEN2",
    }
    config["checkpointer"] = {**checkpointer, "output_dir": str(tmp_path / "out")}
    config["teacher_checkpointer"] = {**checkpointer, "output_dir": str(tmp_path / "unused")}
    config_file.write_text(yaml.safe_dump(config))
    code, _, err = tune_run("kd_single_device", config_file, f"dtype={dtype}")
    assert code == 0, err
    lines = (tmp_path / "out" / "logs" / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["kd"] == pytest.approx(0, abs=1e-5)
    assert first["ir"] == pytest.approx(0, abs=1e-5)
    files = (tmp_path / "out" / "epoch_0").glob("*.safetensors")
    (exported,) = (file for file in files if "adapter" not in file.name)
    dtypes = {tensor.dtype for tensor in load_file(exported).values()}
    assert dtypes == {torch.bfloat16 if dtype == "bf16" else torch.float32}
