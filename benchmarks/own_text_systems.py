"""Steps on text that the student writes itself, by ours and by TRL: measured in this process.

Reads an `OwnTextJob` as JSON from the command line and prints an `OwnTextRow` in its last line.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from step_measure import peak_bytes

LEARNING_RATE, RANK = 1e-4, 64


@dataclass(frozen=True)
class OwnTextJob:
    """One system, and the steps that it is to do.

    Attributes:
        greedy: Take the most probable token: then all systems must write the same.
    """

    system: str
    folder: str
    teacher: str
    student: str
    prompts: str
    batch_size: int = 8
    new_tokens: int = 64
    warm_up: int = 1
    steps: int = 4
    greedy: bool = False


@dataclass
class OwnTextRow:
    """What was measured.

    Attributes:
        seconds, writing: Of each timed step, and of its generation.
        tokens: Mean tokens that a step's student has written.
        first: The first step's divergence per token.
        reason: Why nothing was measured.
    """

    system: str
    seconds: list[float] = field(default_factory=list)
    writing: list[float] = field(default_factory=list)
    tokens: float = 0.0
    first: float = float("nan")
    peak_bytes: int = 0
    reason: str = ""


def ours(job: OwnTextJob, accumulation: int = 1) -> OwnTextRow:
    """A run as ``tune run kd_single_device`` does it, without what is between steps."""
    from omegaconf import OmegaConf
    from step_systems import base_config

    from kd_training import OneDevice, prepare
    from kd_training.train import load

    config = base_config(_step_job(job)) | {
        "kd_loss": {"_component_": "kd_losses.ReverseKLLoss"},
        "kd_ratio": 1.0,
        "dataset": {
            "_component_": "kd_data.prompt_completion_dataset",
            "data_files": job.prompts,
            "completion_column": None,
        },
        "batch_size": job.batch_size // accumulation,
        "gradient_accumulation_steps": accumulation,
        "on_policy": {
            "max_new_tokens": job.new_tokens,
            "temperature": 0.0 if job.greedy else 1.0,
            "log_texts": 0,
        },
    }
    run = prepare(OmegaConf.create(config), OneDevice("cpu"))
    step = load(run).step
    run.student.module.train()
    marks, writing, tokens, row = [time.perf_counter()], [], [], OwnTextRow(job.system)
    for number, batches in enumerate(run.source.steps(0), start=1):
        news = run.source.news().values
        values = step(batches, number)
        marks.append(time.perf_counter())
        writing.append(news["generation_seconds"])
        tokens.append(values["num_tokens"])
        if number == 1:
            row.first = values["kd"]
    return _timed(job, row, marks, writing, tokens)


def trl(job: OwnTextJob, checkpointing: bool = True) -> OwnTextRow:
    """TRL's DistillationTrainer, its ``train()`` as it is."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lines = Path(job.prompts).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    trainer = DistillationTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.student, dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(job.teacher, dtype=torch.float32),
        args=DistillationConfig(
            output_dir=job.folder, max_completion_length=job.new_tokens, beta=1.0,
            temperature=1.0, top_k=1 if job.greedy else 0, shuffle_dataset=False,
            per_device_train_batch_size=job.batch_size, max_steps=job.warm_up + job.steps,
            learning_rate=LEARNING_RATE, lr_scheduler_type="constant", weight_decay=0.01,
            max_grad_norm=0.0, gradient_checkpointing=checkpointing, use_cpu=True, bf16=False,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(job.teacher),
        peft_config=LoraConfig(r=RANK, lora_alpha=RANK, target_modules=modules,
                               task_type="CAUSAL_LM"),
    )  # fmt: skip
    marks, writing, tokens, losses = [], [], [], []

    class Ticks(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

    write, learn = trainer._generate_single_turn, trainer.training_step

    def watched_write(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = write(*args, **kwargs)
        writing.append(time.perf_counter() - start)
        tokens.append(sum(map(len, found)))
        return found

    def watched_learn(*args: Any, **kwargs: Any) -> Any:
        loss = learn(*args, **kwargs)
        losses.append(loss.item())
        return loss

    trainer._generate_single_turn, trainer.training_step = watched_write, watched_learn
    trainer.add_callback(Ticks())
    trainer.train()
    return _timed(job, OwnTextRow(job.system, first=losses[0]), marks, writing, tokens)


def _timed(
    job: OwnTextJob, row: OwnTextRow, marks: list[float], writing: list[float], tokens: list[float]
) -> OwnTextRow:
    all_seconds = [end - start for start, end in pairwise(marks)]
    row.seconds, row.writing = all_seconds[job.warm_up :], writing[job.warm_up :]
    row.tokens = sum(tokens) / len(tokens)
    row.peak_bytes = peak_bytes("cpu")
    return row


def _step_job(job: OwnTextJob) -> Any:
    from step_job import Job

    return Job(
        job.system,
        job.folder,
        job.teacher,
        job.student,
        {},
        [],
        batch_size=job.batch_size,
        warm_up=job.warm_up,
        steps=job.steps,
        profiled=0,
    )


SYSTEMS = {
    "TRL 1.16": trl,
    "TRL 1.16, no checkpointing": lambda job: trl(job, checkpointing=False),
    "ours": ours,
    "ours, 4 micro-batches of 2": lambda job: ours(job, accumulation=4),
}


def main() -> None:
    """Measure the job of the command line."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is local here
    job = OwnTextJob(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(SYSTEMS[job.system](job))))


if __name__ == "__main__":
    main()
