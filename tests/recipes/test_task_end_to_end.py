"""Teacher tuning in torchtune's own recipe, a shallow student, distillation and lm_eval, on tasks.

The published configs run as they stand; only paths, sizes and steps are overridden.
"""

import json
import re
from pathlib import Path

import lm_eval
import pytest
import tiny
import torch
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from official_tasks import CASES, write_task
from official_tasks import ROOT as TASKS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_models import tokenizer
from kd_data import lm_eval_task
from kd_data.squad_metrics import provide_squad_metrics

ROOT = Path(__file__).parents[2]
TEACHER_CONFIG = ROOT / "configs" / "qwen3_8b_teacher_hellaswag.yaml"
STUDENT_CONFIG = ROOT / "configs" / "qwen3_hellaswag.yaml"
SMALL = ["device=cpu", "dtype=fp32", "tokenizer.max_seq_len=160", "model.lora_dropout=0"]
PLACES = {"pan": "oven", "boat": "river", "book": "shelf", "coat": "hook"}

HELLASWAG = [
    {
        "activity_label": "Tidying up",
        "ctx_a": f"Somebody takes the {thing}.",
        "ctx_b": "they",
        "endings": [f"look for the {other}." for other in PLACES.values()],
        "label": str(list(PLACES).index(thing)),
    }
    for thing in PLACES
]
COQA = [
    {
        "story": f"The {thing} is at the {place}.",
        "questions": {"input_text": ["What is it?", "Where?"]},
        "answers": {"input_text": [f"a {thing}", place]},
        "additional_answers": {"0": {"input_text": [f"the {thing}", f"the {place}"]}},
    }
    for thing, place in PLACES.items()
]


@pytest.mark.parametrize(
    ("task", "rows", "metric"),
    [("hellaswag", HELLASWAG, "acc,none"), ("coqa", COQA, "em,none")],
)
def test_from_a_task_to_its_results(tune_run, tmp_path, task, rows, metric):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    definition = TASKS / CASES[task].definition
    write_task(tasks, task, rows, include=str(definition))

    teacher = tune_teacher(
        tune_run, tmp_path, [f"dataset.task={task}", f"dataset.include_path={tasks}"]
    )
    student = make_student(tune_run, tmp_path, teacher)
    data = [f"{key}.include_path={tasks}" for key in ("dataset", "dataset_val")]
    data += [f"{key}.task={task}" for key in ("dataset", "dataset_val")]
    distilled = distil(tune_run, tmp_path, teacher, student, data)

    results, samples = evaluate(distilled, task, tasks, tmp_path / "eval")
    assert 0 <= results["results"][task][metric] <= 1
    check_trained_on_what_is_scored(
        samples, lm_eval_task(tokenizer(distilled), task, "train", tasks), distilled
    )


def tune_teacher(tune_run, root, overrides):
    """A merged directory out of torchtune's recipe.

    One epoch, because on a CPU torchtune merges each epoch's LoRA into the live weights.
    """
    base = tiny.save_model(root / "base", "qwen3", head_dim=8, max_position_embeddings=1024)
    out = root / "teacher"
    overrides = [*overrides, *SMALL, f"model.checkpoint_dir={base}", f"output_dir={out}"]
    overrides += [
        "epochs=1",
        "batch_size=1",
        "optimizer.lr=1e-2",
        "lr_scheduler.num_warmup_steps=1",
    ]
    code, _, err = tune_run("lora_finetune_single_device", TEACHER_CONFIG, *overrides)
    assert code == 0, err
    (log,) = (out / "logs").glob("log_*.txt")
    losses = [float(value) for value in re.findall(r"loss:([\d.]+)", log.read_text())]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert {path.name for path in (out / "epoch_0").iterdir()} >= {
        "config.json",
        "model.safetensors",
    }
    check_merged(base, out / "epoch_0")
    return out / "epoch_0"


def check_merged(base, directory):
    """Base plus alpha/rank·B·A with rank and alpha 32, in a directory without adapter files."""
    assert not list(directory.glob("adapter_*"))
    before, after = (load_file(folder / "model.safetensors") for folder in (base, directory))
    adapter = load_file(directory / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == 2 * 4 * 7
    for name in after:
        lora = "base_model.model." + name.removesuffix("weight") + "lora_{}.weight"
        if lora.format("A") in adapter:
            before[name] += adapter[lora.format("B")] @ adapter[lora.format("A")]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def make_student(tune_run, root, teacher):
    student = root / "student"
    overrides = [f"teacher_dir={teacher}", f"output_dir={student}", "layers=[0,2]"]
    code, _, err = tune_run("kd_init_student", ROOT / "configs" / "init_student.yaml", *overrides)
    assert code == 0, err
    return student


def distil(tune_run, root, teacher, student, overrides):
    out = root / "out"
    overrides = [*overrides, *SMALL, f"output_dir={out}", f"model.checkpoint_dir={student}"]
    overrides += [f"teacher_model.checkpoint_dir={teacher}", "batch_size=2", "epochs=6"]
    overrides += ["gradient_accumulation_steps=1", "lr_scheduler.num_warmup_steps=1"]
    overrides += ["optimizer.lr=1e-2", "run_val_every_n_steps=2"]
    code, _, err = tune_run("kd_single_device", STUDENT_CONFIG, *overrides)
    assert code == 0, err
    records = [json.loads(line) for line in (out / "logs/metrics.jsonl").read_text().splitlines()]
    for name in ("val/total", "val/ce", "val/kd", "val/ir"):
        values = [record[name] for record in records if name in record]
        assert values[-1] < values[0], name
    assert {name for name in records[0] if name.startswith("ir/")} == {"ir/s0-t1", "ir/s1-t3"}
    AutoModelForCausalLM.from_pretrained(out / "best")
    return out / "best"


def evaluate(model, task, tasks, output):
    """lm_eval's results as its file has them, and its samples."""
    provide_squad_metrics()
    evaluated = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={model},dtype=float32",
        tasks=[task],
        device="cpu",
        batch_size=4,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        gen_kwargs="max_gen_toks=8" if task == "coqa" else None,
    )
    samples = evaluated.pop("samples")
    tracker = EvaluationTracker(output_path=str(output))
    tracker.save_results_aggregated(results=evaluated, samples=samples)
    return json.loads(next(output.rglob("results_*.json")).read_text()), samples[task]


def check_trained_on_what_is_scored(samples, dataset, model):
    """Each training sample is the context that lm_eval asks, then an answer that it calls right."""
    eos = "<|im_end|>"
    words = tokenizer(model)
    assert len(samples) == len(dataset) == len(PLACES)
    for sample in samples:
        trained = dataset[sample["doc_id"]]
        text = words.decode(trained["tokens"])
        label_text = words.decode([label for label in trained["labels"] if label != -100])
        requests = [request[:2] for request in sample["arguments"]]
        if len(requests) > 1:
            context, answer = requests[int(sample["target"])]
        else:
            context, answer = requests[0][0], f" {sample['doc']['answers']['input_text'][-1]}"
        assert text == context + answer + eos
        assert label_text == answer + eos
