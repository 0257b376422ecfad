"""TRL's GKD trainer as its documentation sets it up, off-policy, with the forward KL alone."""

import os
from typing import Any

import torch
from datasets import Dataset
from omegaconf import OmegaConf
from peft import LoraConfig
from step_clock import BACKWARD, DATA, LOSS, OPTIMIZER, STUDENT, TEACHER, Clock
from step_job import Job
from torch.utils.data import dataloader
from torchtune import config
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    TrainerCallback,
)

from hf_models import HFTokenizer

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl.experimental.gkd import GKDConfig, GKDTrainer

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Ticks(TrainerCallback):
    """Tells the clock of each step's end, with the step's loss."""

    def __init__(self, job: Job, clock: Clock) -> None:
        self._job, self._clock = job, clock
        self.loss = float("nan")

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """The first step begins."""
        self._clock.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step has ended."""
        self._clock.tick(self._job.labels_of_step(state.global_step - 1), kd=self.loss)


def train(job: Job, clock: Clock, learning_rate: float) -> None:
    """Its ``train()`` as it is: loader, accelerate and all.

    The samples are tokenised before, by the same tokenizer as everyone's, and padded to the longest
    of a batch.
    """
    tokenizer = AutoTokenizer.from_pretrained(job.teacher)
    trainer = GKDTrainer(
        model=_model(job.student, job),
        teacher_model=_model(job.teacher, job),
        args=_arguments(job, learning_rate),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=_samples(job),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=job.lora_rank, lora_alpha=job.lora_rank, target_modules=LINEAR, task_type="CAUSAL_LM"
        ),
    )
    ticks = Ticks(job, clock)
    trainer.add_callback(ticks)
    _watch(trainer, ticks, clock)
    trainer.train()


def _model(directory: str, job: Job) -> Any:
    dtype = torch.bfloat16 if job.dtype == "bf16" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    return model.to(job.device)


def _arguments(job: Job, learning_rate: float) -> Any:
    return GKDConfig(
        output_dir=job.folder,
        lmbda=0.0,  # off-policy
        beta=0.0,  # forward KL
        temperature=1.0,
        per_device_train_batch_size=job.batch_size,
        max_steps=job.all_steps,
        train_sampling_strategy="sequential",
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.01,  # AdamW's default in torch
        optim="adamw_torch",
        max_grad_norm=0.0,
        gradient_checkpointing=False,
        use_cpu=job.device == "cpu",
        bf16=job.dtype == "bf16",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


def _samples(job: Job) -> Any:
    """Rows of token ids and labels, read as everyone reads them."""
    tokenizer = HFTokenizer(job.teacher, max_seq_len=job.max_len)
    read: Any = config.instantiate(OmegaConf.create(job.dataset), tokenizer)
    rows = [read[i] for i in range(len(read))]
    return Dataset.from_list(
        [{"input_ids": row["tokens"], "labels": row["labels"]} for row in rows]
    )


def _watch(trainer: Any, ticks: Ticks, clock: Clock) -> None:
    inner = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        loss = inner(*args, **kwargs)
        ticks.loss = loss.item()
        return loss

    trainer.training_step = training_step
    clock.wrap(dataloader._SingleProcessDataLoaderIter, "_next_data", DATA)
    student = trainer.model.get_base_model()
    for model, phase in ((student, STUDENT), (trainer.teacher_model, TEACHER)):
        clock.wrap(model, "forward", phase)
        clock.wrap(model.lm_head, "forward", LOSS)
    clock.wrap(trainer, "generalized_jsd_loss", LOSS)
    clock.wrap(trainer.accelerator, "backward", BACKWARD)
    clock.wrap(torch.optim.AdamW, "step", OPTIMIZER)
