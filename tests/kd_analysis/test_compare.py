"""Runs side by side: what lm_eval wrote, the papers' rows, the report."""

import json
import sys

import lm_eval
import pytest
import tiny
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from omegaconf import OmegaConf
from PIL import Image

from kd_analysis.report import compare
from kd_analysis.report.compare_table import group_table
from kd_analysis.report.eval_results import evaluated_model, main_scores, read_results, result_files
from kd_analysis.report.paper_results import paper_table, paper_tables
from kd_analysis.report.runs import find_groups

TASK = """task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: 1
doc_to_choice: [" yes", " no"]
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


def test_lm_evals_own_file_is_understood(tmp_path):
    model = tiny.save_model(tmp_path / "model")
    texts = tiny.save_texts(tmp_path / "texts.jsonl")
    (tmp_path / "task.yaml").write_text(TASK.replace("FILE", str(texts)))
    tracker = EvaluationTracker(output_path=str(model / "eval"))
    report = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={model},dtype=float32",
        tasks=["tiny_choice"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        device="cpu",
        limit=6,
        evaluation_tracker=tracker,
        bootstrap_iters=10,
    )
    tracker.save_results_aggregated(results=report, samples=None)
    (file,) = result_files(tmp_path)
    read = read_results(file)
    expected = report["results"]["tiny_choice"]
    scores = main_scores(read)
    assert {name: s.value for name, s in scores.items()} == {
        "tiny_choice acc, limit 6": expected["acc,none"]
    }
    assert scores["tiny_choice acc, limit 6"].error == expected["acc_stderr,none"]
    assert evaluated_model(file, read) == model
    away = file.rename(tmp_path / file.name)
    assert evaluated_model(away, read) == model, "then it is the model that lm_eval was given"


def save_results(model, task="hellaswag", **metrics):
    folder = model / "eval" / "name"
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.iterdir()))
    report = {
        "results": {task: {"alias": task, **{k.replace("__", ","): v for k, v in metrics.items()}}},
        "config": {"model_args": {"pretrained": "elsewhere"}, "limit": None},
        "n-shot": {task: 0},
        "group_subtasks": {task: []},
    }
    (folder / f"results_2026-01-0{number + 1}.json").write_text(json.dumps(report))


def save_config(folder, **sizes):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(sizes))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Two runs of the sizes of the study's models, evaluated; a third is not."""
    sizes = {"model_type": "qwen3", "hidden_size": 4096}
    teacher = save_config(tmp_path / "models" / "teacher", **sizes, num_hidden_layers=36)
    student = save_config(tmp_path / "models" / "student", **sizes, num_hidden_layers=9)
    save_results(teacher, acc__none=0.6, acc_stderr__none=0.01, acc_norm__none=0.9)
    save_results(teacher, "coqa", em__none=0.75, f1__none=0.8)
    save_results(student, acc__none=0.25)
    for strategy in ("forward", "reverse", "last"):
        out = tmp_path / "out" / strategy
        model = save_config(out / "epoch_0", **sizes, num_hidden_layers=9)
        cfg = tiny.run_config(tmp_path, teacher, student, tmp_path / "texts.jsonl")
        OmegaConf.save(OmegaConf.create(cfg | {"layer_mapping": strategy}), out / "config.yaml")
        if strategy == "last":
            continue
        save_results(model, acc__none=0.9)
        save_results(model, acc__none=0.38, acc_stderr__none=0.005)
        if strategy == "forward":
            save_results(model, "coqa", em__none=0.30)
    return tmp_path


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_table_has_ours_beside_the_papers(runs, monkeypatch):
    monkeypatch.chdir(runs)
    (group,) = find_groups([runs / "out"])
    paper = paper_table(group.teacher, group.student)
    head, _, *lines = group_table(group, paper).splitlines()
    assert cells(head) == [
        "layer matching", "objective", "model", "hellaswag acc", "hellaswag acc, published",
        "coqa em", "coqa em, published", "mean",
    ]  # fmt: skip
    rows = {cells(line)[0]: cells(line)[1:] for line in lines}
    loss = "ForwardKLLoss; ce 1, kd 1, ir 3"
    forward, reverse = ([loss, f"out/{n}/epoch_0", "38.00 ± 0.50"] for n in ("forward", "reverse"))
    assert rows == {
        "teacher": ["", "models/teacher", "60.00 ± 1.00", "63.11", "75.00", "75.02", "67.50"],
        "student before": ["", "models/student", "25.00", "", "", "", ""],
        "forward": [*forward, "37.85", "30.00", "35.40", "34.00"],
        "reverse": [*reverse, "35.01", "", "37.67", ""],
        "none": ["", "published only", "", "35.16", "", "33.73", ""],
        "all_to_one": ["", "published only", "", "34.99", "", "37.35", ""],
        "random": ["", "published only", "", "35.47", "", "34.80", ""],
    }  # fmt: skip


def test_other_sizes_and_losses_are_not_compared(runs):
    (group,) = find_groups([runs / "out"])
    config = group.student / "config.json"
    config.write_text(config.read_text().replace("4096", "2048"))
    assert paper_table(group.teacher, group.student) is None
    assert "published" not in group_table(group)
    for path in runs.glob("out/*/config.yaml"):
        path.write_text(path.read_text().replace("ForwardKLLoss", "ReverseKLLoss"))
    config.write_text(config.read_text().replace("2048", "4096"))
    (group,) = find_groups([runs / "out"])
    table = group_table(group, paper_table(group.teacher, group.student))
    (line,) = [line for line in table.splitlines() if "out/forward" in line]
    assert cells(line)[4] == ""


def test_report_and_picture(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    monkeypatch.setattr(sys, "argv", ["compare", "out", "--output", "report"])
    compare.main()
    text = (runs / "report" / "report.md").read_text()
    assert "## Teacher teacher, student student" in text
    assert "https://arxiv.org/abs/2502.04499" in text
    assert (
        "lm_eval --model hf --model_args pretrained=out/last/epoch_0 --tasks hellaswag,coqa "
        "--output_path out/last/epoch_0/eval"
    ) in text
    assert text in capsys.readouterr().out
    with Image.open(runs / "report" / "report.png") as image:
        assert min(image.size) > 200
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_groups_of_tasks_count_once_and_conditions_are_told_apart():
    report = {
        "results": {
            "mmlu": {"acc,none": 0.5},
            "mmlu_law": {"acc,none": 0.4},
            "gsm8k": {"exact_match,strict-match": 0.1, "exact_match,flexible-extract": 0.2},
        },
        "group_subtasks": {"mmlu": ["mmlu_law"], "gsm8k": []},
        "n-shot": {"gsm8k": 5},
    }
    values = {name: score.value for name, score in main_scores(report).items()}
    assert values == {"mmlu acc": 0.5, "gsm8k exact_match (strict-match), 5-shot": 0.1}


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        find_groups([tmp_path])
    (tmp_path / "results_1.json").write_text("[]")
    with pytest.raises(ValueError, match=r"results_1\.json: not a result file"):
        read_results(tmp_path / "results_1.json")


def test_published_tables_are_complete():
    for table in paper_tables():
        assert {len(values) for values in table.rows.values()} == {len(table.columns)}
        assert all(0 < value < 100 for values in table.rows.values() for value in values)
