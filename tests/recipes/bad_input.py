"""Mistakes that people make, each with the words that the one line about it must hold.

A row is ``name: (overrides, words)``; overrides are a list, or a function of the test's folder and
the small models that makes the bad files first.
"""

import json
import shutil

import tiny

from hf_models import init_student


def with_text(name, content, key="--config"):
    """A file with this content, given as ``key``."""

    def make(tmp, _):
        path = tmp / name
        path.write_text(content)
        return [key, str(path)] if key == "--config" else [f"{key}={path}"]

    return make


def copy_with(role, file, change, keys, others=()):
    """A copy of a model's directory with one file changed, given as every one of ``keys``."""

    def make(tmp, models):
        directory = tmp / "changed"
        shutil.copytree(models[role], directory)
        change(directory / file)
        return [*others, *(f"{key}.checkpoint_dir={directory}" for key in keys)]

    return make


def student_with(file, change):
    return copy_with("student", file, change, ["model", "checkpointer"])


def without_projection(loss):
    """A student of half the teacher's width, compared by ``loss`` without a projection."""

    def make(tmp, models):
        sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
        init_student(
            models["teacher"], tmp / "narrow", num_layers=2, mode="random_init", overrides=sizes
        )
        student = [f"{key}.checkpoint_dir={tmp / 'narrow'}" for key in ("model", "checkpointer")]
        return [*student, f"ir_loss._component_={loss}", "layer_projection.mode=never"]

    return make


def tokenizer_with(file, change):
    return copy_with("teacher", file, change, ["tokenizer"])


def sizes(**changes):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def swap_two_tokens(path):
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))


def add_a_token(path):
    content = json.loads(path.read_text())
    token = {"id": 400, "content": "<|far|>", "special": True, "normalized": False}
    sides = {"single_word": False, "lstrip": False, "rstrip": False}
    content["added_tokens"].append(token | sides)
    path.write_text(json.dumps(content))


def torchtunes_tokenizer(tmp, models):
    """torchtune's tokenizer over the models' vocabulary with two ids exchanged."""
    directory = tmp / "changed"
    shutil.copytree(models["student"], directory)
    content = json.loads((directory / "tokenizer.json").read_text())["model"]
    vocabulary = content["vocab"]
    for a, b in (("n", "A"), ("a", "b")):
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "\n".join(" ".join(pair) for pair in content["merges"])
    (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    files = f"path: {directory}/vocab.json, merges_file: {directory}/merges.txt"
    component = "torchtune.models.qwen2.qwen2_tokenizer"
    return [f"tokenizer={{_component_: {component}, {files}, max_seq_len: 64}}"]


def index_that_leaves_the_directory(path):
    index = {"weight_map": {"model.norm.weight": "../../../etc/passwd"}}
    path.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    path.unlink()


def lines(*values):
    return "\n".join(json.dumps({"text": value}) for value in values) + "\n"


def prompts(name, content):
    """A file as the dataset of prompts and completions."""

    def make(tmp, _):
        path = tmp / name
        path.write_text(content)
        component = "kd_data.prompt_completion_dataset"
        return [f"dataset={{_component_: {component}, data_files: {path}}}"]

    return make


IDENTITY = "_component_=torch.nn.Identity"
CROSS_ENTROPY = "torchtune.modules.loss.CEWithChunkedOutputLoss"
WEIGHTS = "model.safetensors"
BOTH_DIRECTORIES = ("model.checkpoint_dir", "checkpointer.checkpoint_dir")
ROPE = {"rope_type": "default", "rope_theta": 777.0}
ULD = (
    "kd_loss={_component_: kd_losses.ULDLoss}",
    "layer_mapping=none",
    "teacher_tokenizer={_component_: hf_models.tokenizer, max_seq_len: 64}",
)
CONFIG_FILE = {
    "missing config": (["--config", "no.yaml"], ["--config no.yaml", "no such file in /"]),
    "folder as config": (
        lambda tmp, _: ["--config", str(tmp)],
        ["a directory", "YAML files", "run.yaml"],
    ),
    "YAML with an open bracket": (with_text("c.yaml", "model: [1,"), ["c.yaml", "line 2"]),
    "YAML with a tab": (with_text("c.yaml", "a:\n\t- b"), ["c.yaml", "line 2"]),
    "YAML list": (with_text("c.yaml", "- 1\n- 2"), ["c.yaml", "keys and values"]),
    "YAML with a key called config": (with_text("c.yaml", "config: 1"), ["c.yaml", "config"]),
    "weights as config": (
        lambda _, models: ["--config", str(models["student"] / WEIGHTS)],
        [WEIGHTS, "not a YAML file"],
    ),
    "nothing but a device": (with_text("c.yaml", "device: cpu"), ["output_dir", "must be set"]),
    "flag instead of an override": (["--epochs"], ["--epochs", "key=value"]),
    "override without a value": (["epochs"], ["key=value", "epochs"]),
    "override with an open bracket": (["dataset={a: "], ["command line", "dataset={a: ", "YAML"]),
    "keys for a list": (["model.lora_attn_modules={a: 1}"], ["lora_attn_modules={a: 1}", "list"]),
    "list for keys": (["loss_scaling=[1]"], ["loss_scaling=[1]", "list"]),
    "an item of a list": (["model.lora_attn_modules.0=x"], ["lora_attn_modules.0=x", "list"]),
    "empty config": (with_text("c.yaml", ""), ["c.yaml", "keys and values"]),
    "a word as config": (with_text("c.yaml", "hello"), ["hello is no key"]),
}
KEYS = {
    "misspelt key": (["epcohs=3"], ["epcohs", "did you mean epochs"]),
    "misspelt device": (["~device", "devcie=cpu"], ["devcie", "did you mean device"]),
    "misspelt nested key": (["loss_scaling.enabeld=true"], ["enabeld", "did you mean enabled"]),
    "misspelt key two levels down": (
        ["loss_scaling.manual_scales.irr=1"],
        ["manual_scales.irr", "did you mean ir"],
    ),
    "misspelt argument": (["model.lora_rnak=8"], ["model.lora_rnak", "did you mean lora_rank"]),
    "misspelt argument of a strategy": (
        ["layer_mapping={_component_: layer_mapping.all_to_one, layr: 1}"],
        ["layer_mapping.layr", "did you mean layer"],
    ),
    "misspelt component": (
        ["kd_loss._component_=kd_losses.ForwardKLoss"],
        ["kd_loss", "ForwardKLoss", "did you mean ForwardKLLoss?"],
    ),
    "component that is a number": (["kd_loss._component_=5"], ["kd_loss", "dotted name"]),
    "component that is a module": (["kd_loss._component_=kd_losses"], ["kd_loss", "callable"]),
    "component that is a path": (["kd_loss._component_=/etc/passwd"], ["kd_loss", "passwd"]),
    "interpolation of nothing": (["output_dir=${nowhere.dir}"], ["nowhere.dir"]),
    "interpolation in a circle": (["output_dir=${output_dir}"], ["config", "nterpolation"]),
    "a name where keys belong": (["token_scope=labels"], ["token_scope", "kd, ir"]),
    "null where keys belong": (["loss_scaling=null"], ["loss_scaling"]),
    "logger by its name": (["metric_logger=tensorboard"], ["metric_logger", "_component_"]),
}
VALUES = {
    "text for a number": (["batch_size=many"], ["batch_size", "many"]),
    "fraction of an epoch": (["epochs=1.5"], ["epochs", "1.5"]),
    "negative epochs": (["epochs=-1"], ["epochs", "at least 1"]),
    "no batch": (["batch_size=0"], ["batch_size", "at least 1"]),
    "no accumulation": (["gradient_accumulation_steps=0"], ["gradient_accumulation_steps"]),
    "no step between logs": (["log_every_n_steps=0"], ["log_every_n_steps", "at least 1"]),
    "no step between saves": (["save_every_n_steps=0"], ["save_every_n_steps", "at least 1"]),
    "fewer workers than none": (["num_workers=-1"], ["num_workers", "-1", "at least 0"]),
    "workers in words": (["num_workers=all"], ["num_workers", "all"]),
    "maybe": (["resume_from_checkpoint=maybe"], ["resume_from_checkpoint", "maybe"]),
    "negative seed": (["seed=-1"], ["seed", "-1"]),
    "huge seed": (["seed=99999999999999"], ["seed", "between"]),
    "ratio above 1": (["kd_ratio=1.1"], ["kd_ratio", "between 0 and 1"]),
    "ratio that is no number": (["kd_ratio=nan"], ["kd_ratio", "between 0 and 1"]),
    "gradient clipped to 0": (["clip_grad_norm=0"], ["clip_grad_norm", "above 0"]),
    "infinite weight": (["loss_scaling.manual_scales.kd=inf"], ["manual_scales.kd", "finite"]),
    "negative share": (["loss_scaling.dynamic.shares.ce=-1"], ["shares.ce", "at least 0"]),
    "memory without end": (["loss_scaling.dynamic.ema=1"], ["ema", "0 <= ema < 1"]),
    "bound below the shares": (
        ["loss_scaling.dynamic.max_weight=0.5"],
        ["dynamic.max_weight", "0.5", "at least 1"],
    ),
    "no bound": (["loss_scaling.dynamic.max_weight=inf"], ["dynamic.max_weight", "finite"]),
    "bound null": (["loss_scaling.dynamic.max_weight=null"], ["dynamic.max_weight"]),
    "every weight 0": (
        [f"loss_scaling.manual_scales.{part}=0" for part in ("ce", "kd", "ir")],
        ["loss_scaling", "weight 0"],
    ),
    "no chunk": (
        [f"loss={{_component_: {CROSS_ENTROPY}, num_output_chunks: 0}}"],
        ["loss.num_output_chunks", "at least 1"],
    ),
    "maybe for an argument": (["profiler.enabled=maybe"], ["profiler.enabled", "maybe", "true"]),
    "maybe in the model": (
        ["model.apply_lora_to_mlp=maybe"],
        ["apply_lora_to_mlp", "true or false"],
    ),
    "text for an argument": (["model.lora_rank=many"], ["model.lora_rank", "many", "whole number"]),
    "list for an argument": (["model.lora_alpha=[8]"], ["model.lora_alpha", "[8]", "a number"]),
    "text for a list": (["model.lora_attn_modules=q_proj"], ["lora_attn_modules", "a list"]),
    "no learning rate": (["optimizer.lr=null"], ["optimizer.lr", "null", "a number"]),
    "directory null": (
        ["teacher_model.checkpoint_dir=null"],
        ["teacher_model.checkpoint_dir", "path"],
    ),
    "negative dropout": (["model.lora_dropout=-0.5"], ["model", "lora_dropout", "-0.5"]),
    "negative rate of projections": (["layer_projection.lr=-1"], ["layer_projection.lr", "-1"]),
    "longer than the models": (["tokenizer.max_seq_len=129"], ["tokenizer.max_seq_len", "128"]),
    "shards of no size": (["checkpointer.max_shard_size=big"], ["checkpointer", "big", "5GB"]),
    "fp16": (["dtype=fp16"], ["dtype", "fp16", "bf16"]),
    "validation without data": (
        ["run_val_every_n_steps=2"],
        ["run_val_every_n_steps", "dataset_val"],
    ),
    "temperature 0": (["kd_loss.temperature=0"], ["kd_loss", "temperature", "above 0"]),
    "mixture weight of 2": (
        ["kd_loss._component_=kd_losses.JSDistanceLoss", "kd_loss.lambda_weight=2"],
        ["kd_loss", "lambda_weight"],
    ),
    "top 0 logits": (
        ["kd_loss._component_=kd_losses.TopKKLLoss", "kd_loss.top_k=0"],
        ["kd_loss", "top_k", "at least 2"],
    ),
    "other ignored label": (["kd_loss.ignore_index=-1"], ["kd_loss.ignore_index", "-100"]),
    "rank 0": (["model.lora_rank=0"], ["model", "lora_rank", "at least 1"]),
    "unknown LoRA module": (["model.lora_attn_modules=[qproj]"], ["model", "qproj", "q_proj"]),
    "negative learning rate": (["optimizer.lr=-1"], ["optimizer", "-1"]),
    "learning rate in words": (["optimizer.lr=small"], ["optimizer"]),
    "no room for a target": (["tokenizer.max_seq_len=1"], ["tokenizer.max_seq_len", "at least 2"]),
    "length in words": (["tokenizer.max_seq_len=long"], ["tokenizer.max_seq_len", "long"]),
}
LAYERS = {
    "layer out of range": (["layer_mapping=[[0,6]]"], ["layer_mapping", "teacher layer 6"]),
    "half a pair": (["layer_mapping=[[0]]"], ["layer_mapping", "[student, teacher]"]),
    "layer in words": (["layer_mapping=[[0,last]]"], ["layer_mapping", "integers"]),
    "number of pairs": (["layer_mapping=5"], ["layer_mapping"]),
    "misspelt strategy": (["layer_mapping=forwrad"], ["forwrad", "forward"]),
    "one layer out of range for all": (
        ["layer_mapping={_component_: layer_mapping.all_to_one, layer: 99}"],
        ["layer_mapping", "99", "0 to 5"],
    ),
    "a module as strategy": (
        ["layer_mapping={_component_: torch.nn.Linear, in_features: 3, out_features: 3}"],
        ["layer_mapping", "in_features"],
    ),
    "no pairs": (["layer_mapping=[]"], ["layer_mapping", "none"]),
    "no loss for the pairs": (["ir_loss=null"], ["ir_loss", "must be set"]),
    "torch's loss for the pairs": (
        ["ir_loss._component_=torch.nn.MSELoss"],
        ["ir_loss", "layer_mapping.CosineLoss"],
    ),
    "too few weights": (["ir_loss.pair_weights=[1]"], ["ir_loss", "1 pair_weights for 2"]),
    "unknown reduction": (["ir_loss.reduction=max"], ["ir_loss", "max", "mean"]),
    "two widths, compared entry by entry": (
        without_projection("layer_mapping.MSELoss"),
        ["layer_projection", "width 16", "32", "MSELoss needs projection", "RelationalLoss"],
    ),
    "unknown projection": (["layer_projection.mode=sometimes"], ["layer_projection.mode", "auto"]),
}
COMPONENTS = {
    "kd_loss of another library": (
        ["kd_loss._component_=torchtune.modules.loss.ForwardKLLoss"],
        ["kd_loss", "kd_losses"],
    ),
    "loss that is no cross-entropy": (
        ["loss._component_=torch.nn.MSELoss"],
        ["loss", "cross-entropy"],
    ),
    "model that is none": ([f"model.{IDENTITY}"], ["model", "decoder"]),
    "teacher that is none": ([f"teacher_model.{IDENTITY}"], ["teacher_model", "decoder"]),
    "quantisation that is none": (
        ["teacher_quantization={_component_: torch.nn.Identity}"],
        ["teacher_quantization", "Int8WeightOnlyConfig"],
    ),
    "tokenizer that is none": ([f"tokenizer.{IDENTITY}"], ["tokenizer", "pad_id"]),
    "optimizer that is none": (["optimizer._component_=torch.nn.Linear"], ["optimizer", "Linear"]),
    "schedule that is none": ([f"lr_scheduler.{IDENTITY}"], ["lr_scheduler", "scheduler"]),
    "dataset that is none": ([f"dataset.{IDENTITY}"], ["dataset", "Identity"]),
    "checkpointer that is none": (
        [f"checkpointer.{IDENTITY}"],
        ["checkpointer", "load_checkpoint"],
    ),
    "logger that is none": ([f"metric_logger.{IDENTITY}"], ["metric_logger", "log_dict"]),
    "profiler that is none": ([f"profiler.{IDENTITY}"], ["profiler", "setup_torch_profiler"]),
}
DATA = {
    "missing dataset": (
        ["dataset.data_files=/no/such.jsonl"],
        ["dataset: /no/such.jsonl: no such file"],
    ),
    "empty dataset": (with_text("d.jsonl", "", "dataset.data_files"), ["dataset", "d.jsonl"]),
    "no JSON": (with_text("d.jsonl", "{no", "dataset.data_files"), ["dataset", "d.jsonl"]),
    "true as dataset": (["dataset.data_files=true"], ["dataset.data_files", "True", "a path"]),
    "folder as dataset": (
        lambda tmp, _: [f"dataset.data_files={tmp}"],
        ["data_files", "directory"],
    ),
    "no data files": (["dataset.data_files=null"], ["dataset.data_files", "json"]),
    "unknown split": (["dataset.split=test"], ["dataset", "test", "train"]),
    "unknown column": (["dataset.column=story"], ["dataset: sample 0", "story", "columns"]),
    "numbers for texts": (
        with_text("d.jsonl", lines(1, 2, 3, 4), "dataset.data_files"),
        ["dataset: sample 0", "str"],
    ),
    "table of an unknown format": (prompts("d.xlsx", "PK"), ["dataset", "d.xlsx", ".csv, .tsv"]),
    "table without the column": (
        prompts("d.csv", "prompt,answer\na,b\n"),
        ["dataset", "d.csv", "'completion'", "prompt, answer"],
    ),
    "table with an empty field": (
        prompts("d.csv", "prompt,completion\na,\n"),
        ["dataset", "d.csv", "'completion'", "row 1"],
    ),
    "table that is no Parquet": (prompts("d.parquet", "text"), ["dataset", "d.parquet", "rows"]),
    "all labels masked": (
        lambda tmp, _: [f"dataset.data_files={tiny.save_texts(tmp / 'one.jsonl', ['', ''])}"],
        ["dataset", "label"],
    ),
    "too few samples": (["batch_size=64"], ["dataset", "batch_size"]),
    "more accumulation than data": (
        ["gradient_accumulation_steps=100"],
        ["dataset", "gradient_accumulation_steps"],
    ),
    "missing validation data": (
        [
            "dataset_val={_component_: torchtune.datasets.text_completion_dataset, source: json,"
            " data_files: /no/such.jsonl, split: train}"
        ],
        ["dataset_val: /no/such.jsonl: no such file"],
    ),
    "mixture of no files": (
        [
            "dataset_val={_component_: kd_data.mixture, weights: [1], datasets:"
            " [{_component_: torchtune.datasets.text_completion_dataset, source: json}]}"
        ],
        ["dataset_val.datasets[0].data_files", "json"],
    ),
}
MODELS = {
    "missing directory": (
        ["teacher_model.checkpoint_dir=/no/where"],
        ["teacher_model", "/no/where"],
    ),
    "config.json missing": (student_with("config.json", lambda p: p.unlink()), ["config.json"]),
    "config.json cut short": (
        student_with("config.json", lambda p: p.write_text("{")),
        ["config.json", "JSON"],
    ),
    "unsupported family": (
        student_with("config.json", sizes(model_type="gpt2")),
        ["config.json", "gpt2", "qwen3"],
    ),
    "activation we do not have": (
        student_with("config.json", sizes(hidden_act="gelu")),
        ["config.json", "gelu"],
    ),
    "one layer too many": (
        student_with("config.json", sizes(num_hidden_layers=3)),
        ["model.layers.2", "missing"],
    ),
    "another width": (
        student_with("config.json", sizes(hidden_size=48)),
        [WEIGHTS, "[320, 32]", "[320, 48]"],
    ),
    "no heads": (
        student_with("config.json", sizes(num_key_value_heads=0)),
        ["config.json", "num_key_value_heads", "at least 1"],
    ),
    "no positions": (
        student_with("config.json", sizes(max_position_embeddings=0)),
        ["config.json", "max_position_embeddings"],
    ),
    "width in words": (
        student_with("config.json", sizes(hidden_size="wide")),
        ["config.json", "hidden_size", "wide"],
    ),
    "missing weights": (student_with(WEIGHTS, lambda p: p.unlink()), ["changed", "safetensors"]),
    "weights cut short": (
        student_with(WEIGHTS, lambda p: p.write_bytes(p.read_bytes()[:-50])),
        [WEIGHTS, "complete"],
    ),
    "empty weights": (student_with(WEIGHTS, lambda p: p.write_bytes(b"")), [WEIGHTS]),
    "weights of noise": (
        student_with(WEIGHTS, lambda p: p.write_bytes(b"x" * 1000)),
        [WEIGHTS, "complete"],
    ),
    "pickled weights": (
        student_with(WEIGHTS, lambda p: p.rename(p.with_name("pytorch_model.bin"))),
        [".bin", "save_pretrained"],
    ),
    "index that leaves the directory": (
        student_with(WEIGHTS, index_that_leaves_the_directory),
        ["passwd", "inside the directory"],
    ),
    "weights by another name": (
        ["checkpointer.checkpoint_files=[other.safetensors]"],
        ["other.safetensors", "not found"],
    ),
    "weights of another model": (
        lambda _, models: [f"checkpointer.checkpoint_dir={models['teacher']}"],
        ["model.checkpoint_dir", "checkpointer.checkpoint_dir", "num_hidden_layers is 2 and 6"],
    ),
    "built with one norm, exported with another": (
        copy_with("student", "config.json", sizes(rms_norm_eps=0.1), ["checkpointer"]),
        [*BOTH_DIRECTORIES, "rms_norm_eps is 1e-06 and 0.1", "${model.checkpoint_dir}"],
    ),
    "built with one rope, exported with another": (
        copy_with("student", "config.json", sizes(rope_parameters=ROPE), ["model"]),
        [*BOTH_DIRECTORIES, "rope_parameters", "777.0"],
    ),
    "a teacher of two norms": (
        copy_with("teacher", "config.json", sizes(rms_norm_eps=0.1), ["teacher_model"]),
        [*(f"teacher_{key}" for key in BOTH_DIRECTORIES), "rms_norm_eps is 0.1 and 1e-06"],
    ),
    "other vocabulary": (
        copy_with("teacher", "tokenizer.json", swap_two_tokens, ["teacher_checkpointer"]),
        ["tokenizer and teacher_checkpointer", "vocabularies disagree", "2 ids", "share one"],
    ),
    "other vocabulary in the student": (
        student_with("tokenizer.json", swap_two_tokens),
        ["tokenizer and checkpointer", "disagree", "2 ids", "${checkpointer.checkpoint_dir}"],
    ),
    "another tokenizer than the models'": (
        tokenizer_with("tokenizer.json", swap_two_tokens),
        ["tokenizer and checkpointer", "disagree", "2 ids", "${checkpointer.checkpoint_dir}"],
    ),
    "torchtune's tokenizer of another vocabulary": (
        torchtunes_tokenizer,
        ["tokenizer and checkpointer", "disagree", "[35, 80, 262, ", "Qwen2Tokenizer"],
    ),
    "an id without an embedding": (
        tokenizer_with("tokenizer.json", add_a_token),
        ["tokenizer has ids up to 320", "model has embeddings for 320"],
    ),
    "teacher_tokenizer of another teacher": (
        copy_with("teacher", "tokenizer.json", swap_two_tokens, ["teacher_tokenizer"], ULD),
        ["teacher_tokenizer and teacher_checkpointer", "disagree", "2 ids"],
    ),
    "no tokenizer": (
        tokenizer_with("tokenizer.json", lambda p: p.unlink()),
        ["tokenizer", "changed", "tokenizer.json"],
    ),
    "tokenizer cut short": (
        tokenizer_with("tokenizer.json", lambda p: p.write_text("{")),
        ["tokenizer", "changed", "cannot be read"],
    ),
    "tokenizer of another shape": (
        tokenizer_with("tokenizer.json", lambda p: p.write_text("{}")),
        ["tokenizer", "changed", "cannot be read"],
    ),
    "tokenizer cut short in the teacher": (
        copy_with(
            "teacher", "tokenizer.json", lambda p: p.write_text("{"), ["teacher_checkpointer"]
        ),
        ["changed", "tokenizer.json", "cannot be read"],
    ),
}
OUTPUT = {
    "no place for the students": (
        ["~checkpointer.output_dir"],
        ["checkpointer.output_dir", "not set", "${output_dir}"],
    ),
    "no place for torchtune's checkpointer": (
        lambda _, models: [
            "checkpointer={_component_: torchtune.training.FullModelHFCheckpointer, model_type:"
            f" QWEN2, checkpoint_files: [{WEIGHTS}], checkpoint_dir: {models['student']}}}"
        ],
        ["checkpointer.output_dir", "not set", "${output_dir}"],
    ),
    "students in another place": (
        lambda tmp, _: [f"checkpointer.output_dir={tmp}/elsewhere"],
        ["checkpointer.output_dir", "elsewhere", "${output_dir}"],
    ),
    "only an adapter that is not there": (
        lambda _, models: [
            f"model={{_component_: hf_models.decoder, checkpoint_dir: {models['student']}}}",
            "save_adapter_weights_only=true",
        ],
        ["save_adapter_weights_only", "no adapter", "hf_models.lora_decoder"],
    ),
}
MACHINE = {
    "student that the run would move away": (
        lambda tmp, _: [f"model.checkpoint_dir={tmp}/out/epoch_0"],
        ["model.checkpoint_dir", "out/epoch_0", "another output_dir"],
    ),
    "data that the run would move away": (
        lambda tmp, _: [f"dataset.data_files=[{tmp}/out/logs/*.jsonl]"],
        ["dataset.data_files[0]", "out/logs", "another output_dir"],
    ),
    "unwritable output": (lambda tmp, _: [f"output_dir={tmp}/run.yaml/out"], ["output_dir"]),
    "unknown device": (["device=tpu9"], ["device", "tpu9"]),
    "unknown quantisation": (["teacher_quantization=int3"], ["int3", "nf4"]),
    "half a sharding": (["teacher_sharding=half"], ["teacher_sharding", "full"]),
}
BAD = CONFIG_FILE | KEYS | VALUES | LAYERS | COMPONENTS | DATA | MODELS | OUTPUT | MACHINE
