"""The systems under comparison, each driven through whole optimizer steps by its own code.

All of them train the same LoRA (every linear layer of the blocks, no dropout, not the head) of the
same student with AdamW, on the same samples.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf
from step_clock import BACKWARD, LOSS, OPTIMIZER, STUDENT, TEACHER, Clock
from step_job import Job

LEARNING_RATE = 1e-4
CE_AND_KD = 0.5  # kd_ratio: total = (1 - kd_ratio) CE + kd_ratio KD


class NotMeasuredError(Exception):
    """This system cannot be measured here."""


def base_config(job: Job) -> dict[str, Any]:
    """The keys that torchtune's recipe and ours read alike."""
    files = {"_component_": "hf_models.HFCheckpointer", "output_dir": job.folder}
    return {
        "output_dir": job.folder,
        "model": {
            "_component_": "hf_models.lora_decoder",
            "checkpoint_dir": job.student,
            "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
            "apply_lora_to_mlp": True,
            "lora_rank": job.lora_rank,
            "lora_alpha": job.lora_rank,
        },
        "teacher_model": {"_component_": "hf_models.decoder", "checkpoint_dir": job.teacher},
        "tokenizer": {
            "_component_": "hf_models.tokenizer",
            "checkpoint_dir": job.teacher,
            "max_seq_len": job.max_len,
        },
        "checkpointer": files | {"checkpoint_dir": job.student},
        "teacher_checkpointer": files | {"checkpoint_dir": job.teacher},
        "resume_from_checkpoint": False,
        "kd_ratio": CE_AND_KD,
        "dataset": job.dataset,
        "seed": 0,
        "shuffle": job.shuffle,
        "batch_size": job.batch_size,
        "epochs": 1,
        "max_steps_per_epoch": job.all_steps,
        "gradient_accumulation_steps": 1,
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": LEARNING_RATE},
        "compile": False,
        "device": job.device,
        "dtype": job.dtype,
        "enable_activation_checkpointing": False,
    }


def ours_config(job: Job, **changes: Any) -> DictConfig:
    """A run's config."""
    kd_loss = {"_component_": "kd_losses.ForwardKLLoss"}
    return OmegaConf.create(base_config(job) | {"kd_loss": kd_loss} | changes)


def ours(job: Job, clock: Clock, **changes: Any) -> None:
    """A run as ``tune run kd_single_device`` prepares and loads it, without what is between steps.

    Logs, checkpoints and validation are left out; reading and collating the samples is not.
    """
    from kd_teachers import live_models
    from kd_training import OneDevice, prepare
    from kd_training.objective import objective
    from kd_training.train import load

    if job.cache is not None:
        changes["teacher_cache"] = job.cache
    run = prepare(ours_config(job, **changes), OneDevice(job.device))
    loaded = load(run)
    clock.wrap(run.student, "view", STUDENT)
    for model in live_models(run.teacher).values():
        clock.wrap(model, "view", TEACHER)
    clock.wrap(objective, "chunked_sums", LOSS)
    clock.wrap(run.placement, "backward", BACKWARD)
    clock.wrap(loaded.step.optimizer, "step", OPTIMIZER)
    run.student.module.train()
    run.objective.start_epoch(0)
    clock.start()
    for number, micro_batches in enumerate(clock.each(run.source.steps(0)), start=1):
        values = loaded.step(micro_batches, number)
        clock.tick(values["num_tokens"], ce=values["ce"], kd=values["kd"])


def torchtune(job: Job, clock: Clock) -> None:
    """torchtune's own recipe; see `step_torchtune`."""
    from step_torchtune import train

    train(job, clock, base_config(job))


def trl(job: Job, clock: Clock) -> None:
    """TRL's GKD trainer, off-policy; see `step_trl`."""
    try:
        from step_trl import train
    except ImportError as err:
        missing = err.name or str(err)
        how = "pip install -r benchmarks/requirements.txt"
        raise NotMeasuredError(f"{missing} is not installed ({how})") from err
    train(job, clock, LEARNING_RATE)


SYSTEMS: dict[str, Callable[[Job, Clock], None]] = {
    "torchtune": torchtune,
    "trl": trl,
    "ours live": ours,
    "ours grouped": partial(ours, shuffle=True, group_by_length=True),
    "ours packed": ours,
    "ours cached hidden": ours,
    "ours cached top-64": ours,
}
# What each system leaves out, for whoever compares.
NOTES = {
    "torchtune": "its KL leaves out the teacher's entropy: another value, the same gradient",
    "trl": "KL alone: its loss has no cross-entropy",
}
