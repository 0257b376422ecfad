"""Every YAML in configs/ builds everything it names, with small stand-ins for its files."""

import json
import re
import shlex
from argparse import Namespace
from pathlib import Path

import pytest
import tiny
from families import save_family
from official_tasks import write_official_tasks
from omegaconf import OmegaConf
from torchtune.config._utils import _merge_yaml_and_cli_args

from hf_models import init_student
from kd_config.check import check_config
from kd_config.components import check_component
from kd_data.datasets.lm_eval_task import _definition
from kd_training import OneDevice, prepare, train

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
RUNS = [path for path in CONFIGS if "model" in OmegaConf.load(path)]
TASK = "kd_data.lm_eval_task"
EVALUATE = "kd_analysis.evaluate.evaluate.evaluate"
ROWS = ("kd_data.classification_dataset", "kd_data.seq2seq_dataset")
COMMAND = re.compile(r"^(?:# +)?((?:tune run|lm_eval|make eval) .*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """As deep as the deepest layer that a config names, and of unequal widths."""
    root = tmp_path_factory.mktemp("stand_ins")
    teacher = tiny.save_model(root / "teacher", num_hidden_layers=28)
    narrow = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    student = root / "student"
    init_student(teacher, student, num_layers=4, mode="random_init", overrides=narrow)
    pairs = {"": {"model": student, "teacher_model": teacher}}
    for family in ("bert", "bart", "t5"):
        pairs[family] = {
            "model": save_family(root / family / "student", family, student=True),
            "teacher_model": save_family(root / family / "teacher", family),
        }
    return pairs


def family_of(cfg):
    """Whose small models stand in for a config's: encoders and encoder-decoders have their own."""
    name = str(cfg.output_dir).rpartition("/")[2]
    return next((one for one in ("bert", "bart", "t5") if one in name.split("_")), "")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """lm_eval's own tasks over a few rows."""
    directory = tmp_path_factory.mktemp("tasks")
    write_official_tasks(directory)
    return directory


@pytest.fixture
def small(stand_ins, tasks, tiny_run, tmp_path):
    """Makes a config small: paths, sizes and number of steps change, components stay."""

    def shrink(cfg):
        for node, directory in stand_ins[family_of(cfg)].items():
            if cfg.get(node) is not None:
                cfg[node].checkpoint_dir = str(directory)
                if "num_labels" in cfg[node]:
                    cfg[node].num_labels = 3
        cfg.update(output_dir=str(tmp_path / "out"), device="cpu", dtype="fp32", batch_size=2)
        cfg.update(gradient_accumulation_steps=1, max_steps_per_epoch=1, epochs=1)
        cfg.tokenizer.max_seq_len = 40
        texts = tiny.run_config(tmp_path, "", "", tiny_run.texts)["dataset"]
        kept = [key for key in ("dataset", "dataset_val") if cfg.get(key) is not None]
        for key in kept:
            OmegaConf.resolve(cfg[key])
        for key in kept:
            cfg[key] = local_data(cfg[key], tasks, texts, tmp_path)
        return cfg

    return shrink


def local_data(node, tasks, texts, directory):
    """The node with local data: its tasks over local rows, or texts for any other dataset."""
    if node["_component_"] == "kd_data.mixture":
        node.datasets = [local_data(one, tasks, texts, directory) for one in node.datasets]
    elif node["_component_"] in ROWS:
        columns = {key: node[key] for key in node if str(key).endswith("_column")}
        path = directory / "rows.json"
        path.write_text(json.dumps([row(columns, number) for number in range(8)]))
        node = OmegaConf.create({**node, "source": "json", "data_files": str(path)})
        node.split = "train"
        node.pop("name", None)
    elif node["_component_"] == TASK:
        node.include_path = str(tasks)
    else:
        return texts
    return node


def row(columns, number):
    """A row with what a config's columns hold in the real data."""
    if columns.get("source_column") == "tripleset":
        facts = [["the loop", "ends", "once"], ["a name", "is", f"number {number}"]]
        return {"tripleset": facts, "annotations": [{"source": "x", "text": "the loop ends"}]}
    if "source_column" in columns:
        return {"translation": {"en": "the loop ends", "ro": f"a name is bound {number}"}}
    texts = {name: "the loop ends" for key, name in columns.items() if name and "text" in key}
    return texts | {"label": number % 2}


def without_teacher(cfg):
    """Fine-tuning for a config of torchtune's own recipe, as its header says."""
    return cfg if "teacher_model" in cfg else OmegaConf.merge(cfg, {"kd_ratio": 0})


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_is_built_and_takes_a_step(path, small, tmp_path):
    take_a_step(without_teacher(small(OmegaConf.load(path))))
    assert (tmp_path / "out" / "epoch_0" / "model.safetensors").exists()


def take_a_step(cfg):
    train(prepare(cfg, OneDevice("cpu")))


def test_the_teacher_of_the_divergences_is_tuned_by_its_own_config(small):
    path = ROOT / "configs" / "bild_qwen1_5_4b_to_0_5b.yaml"
    command = next(c for c in commands(path) if "output_dir=out/qwen1_5_4b_teacher" in c)
    cfg = small(with_overrides(path, command[5:]))
    cfg.teacher_model.checkpoint_dir = "out/does_not_exist_yet"
    take_a_step(cfg)


def test_the_student_config_names_arguments_that_exist():
    check_init_student(OmegaConf.load(next(p for p in CONFIGS if p.stem == "init_student")))
    assert len(RUNS) == len(CONFIGS) - 1, "a config that no test builds"


def check_init_student(cfg):
    node = OmegaConf.create({"_component_": "hf_models.init_student", **cfg})
    check_component("init_student", node)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_datasets_a_config_names_exist_in_torchtune_or_here(path):
    cfg = OmegaConf.load(path)
    for key in ("dataset", "dataset_val"):
        if cfg.get(key):
            check_component(key, cfg[key])


def commands(path):
    """The commands of a file, each as its words; a backslash continues a line."""
    text = re.sub(r"\\\n#?\s*", "", path.read_text(encoding="utf-8"))
    return [shlex.split(line, comments=True) for line in COMMAND.findall(text)]


def source_of(config):
    """The config that a finished run's is a copy of: that with its output_dir."""
    if not config.startswith("out/"):
        return config
    directory = config.removesuffix("/config.yaml")
    return next(path for path in RUNS if OmegaConf.load(path).output_dir == directory)


def with_overrides(path, overrides):
    """A config as torchtune merges it with the command line's overrides."""
    yaml = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return _merge_yaml_and_cli_args(Namespace(**yaml), overrides)


COMMANDS = [
    pytest.param(command, id=f"{path.stem}-{number}")
    for path in [*CONFIGS, ROOT / "docs" / "reproduce.md"]
    for number, command in enumerate(commands(path))
]


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_commands_name_keys_and_tasks_that_exist(command):
    if command[0] == "tune":
        config = source_of(command[command.index("--config") + 1])
        cfg = with_overrides(ROOT / config, command[command.index("--config") + 2 :])
        if "kd_init_student" in command:
            check_init_student(cfg)
        else:
            evaluation = {"_component_": EVALUATE, **(cfg.pop("evaluation", None) or {})}
            evaluation.pop("name", None)
            check_component("evaluation", OmegaConf.create(evaluation))
            cfg = check_config(without_teacher(cfg))
            tasks = [one.task for one in task_nodes(cfg.dataset)]
            assert all(_definition(task, None) for task in tasks)
        return
    words = " ".join(command).replace("TASKS=", "--tasks ").split()
    for task in words[words.index("--tasks") + 1].split(","):
        assert task.startswith("manual_") or _definition(task, None).exists()


def task_nodes(node):
    nodes = node.datasets if node["_component_"] == "kd_data.mixture" else [node]
    return [one for one in nodes if one["_component_"] == TASK]


def test_each_divergence_of_the_study_is_an_override():
    path = ROOT / "configs" / "bild_qwen1_5_4b_to_0_5b.yaml"
    lines = re.findall(r"^# +(kd_loss=.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 6
    for line in lines:
        check_config(with_overrides(path, line.split()))
