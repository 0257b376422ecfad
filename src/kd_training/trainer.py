"""The training loop: the same from one CPU to many GPUs."""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchtune import training

from kd_analysis.plots import plot_losses
from kd_training import build, output
from kd_training.config import check_config, component
from kd_training.data import build_dataset, build_loader, grouped
from kd_training.describe import describe
from kd_training.metrics import METRICS_FILE, Metrics, peak_memory_gib
from kd_training.objective import PARTS, Sums
from kd_training.placement import Placement
from kd_training.scaling import DynamicScales
from kd_training.validation import Validator


class Trainer:
    """One run. Creating it checks everything that can be checked without reading a weight.

    Args:
        cfg: The run's config.
        placement: Where the models live.

    Raises:
        ValueError: If the config, the models, the data or the output directory do not fit.
        OSError: If a file is missing or unreadable.
    """

    def __init__(self, cfg: DictConfig, placement: Placement) -> None:
        self.cfg = cfg = check_config(cfg)
        self.placement = placement
        self.dtype = training.get_dtype(cfg.dtype, device=placement.device)
        self.seed = training.set_seed(cfg.seed)
        self.output_dir = Path(cfg.output_dir)
        self.global_step, self.best = 0, math.inf
        self.seconds, self.tokens = 0.0, 0.0
        output.check_writable(self.output_dir)

        self.student = build.build_student(cfg, self.dtype)
        self.teacher = build.build_teacher(cfg, self.dtype)
        build.check_vocabularies(cfg)
        ignore_index = build.ignore_index(cfg)
        self.objective = build.build_objective(
            cfg, self.student, self.teacher, placement.device, ignore_index
        )
        self.profiler = build.build_profiler(cfg)
        dynamic = cfg.loss_scaling.dynamic if cfg.loss_scaling.enabled else None
        self.scales = dynamic and DynamicScales(self.objective.weights, dynamic.ema)
        self.checkpointer = build.build_checkpointer(cfg, "checkpointer")
        if self.teacher is not None:
            self.teacher_checkpointer = build.build_checkpointer(cfg, "teacher_checkpointer")
        self._build_data(ignore_index)

    def _build_data(self, ignore_index: int) -> None:
        cfg, placement = self.cfg, self.placement
        tokenizer = component(cfg.tokenizer, "tokenizer")
        loader = {"placement": placement, "pad_id": tokenizer.pad_id}
        loader |= {"ignore_index": ignore_index, "seed": self.seed}
        dataset = build_dataset(cfg.dataset, tokenizer, "dataset", ignore_index)
        self.loader = build_loader(
            dataset, batch_size=cfg.batch_size, shuffle=cfg.shuffle, drop_last=True, **loader
        )
        self.steps_per_epoch = len(self.loader) // cfg.gradient_accumulation_steps
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"dataset: {len(dataset)} samples do not fill one step of batch_size x "
                "gradient_accumulation_steps x devices = "
                f"{cfg.batch_size} x {cfg.gradient_accumulation_steps} x {placement.world_size}"
            )
        if cfg.max_steps_per_epoch is not None:
            self.steps_per_epoch = min(self.steps_per_epoch, cfg.max_steps_per_epoch)
        self.total_steps = cfg.epochs * self.steps_per_epoch

        self.validator = None
        if cfg.dataset_val is not None:
            val = build_dataset(cfg.dataset_val, tokenizer, "dataset_val", ignore_index)
            size = cfg.batch_size_val or cfg.batch_size
            loader_val = build_loader(
                val, batch_size=size, shuffle=False, drop_last=False, **loader
            )
            self.validator = Validator(self.objective, loader_val, self.placement)

    def load(self) -> None:
        """Read the weights and make optimizer and scheduler."""
        cfg, placement = self.cfg, self.placement
        placement.place(self.student, _weights(self.checkpointer), self.dtype)
        if self.teacher is not None:
            placement.place(self.teacher, _weights(self.teacher_checkpointer), self.dtype)
        self.parameters = [p for p in self.student.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": self.parameters}]
        projections = list(self.objective.matcher.parameters()) if self.objective.matcher else []
        if projections:
            lr = cfg.layer_projection.lr
            groups.append({"params": projections} | ({} if lr is None else {"lr": lr}))
            self.parameters = self.parameters + projections
        self.optimizer = component(cfg.optimizer, "optimizer", groups)
        self.scheduler = component(
            cfg.lr_scheduler,
            "lr_scheduler",
            self.optimizer,
            num_training_steps=self.total_steps,
            last_epoch=-1,
        )

    def train(self) -> None:
        """Run all epochs, save a student after each, and draw the loss curves."""
        previous = output.start_output(self.cfg, self.output_dir)
        self.metrics = Metrics(self.cfg, self.output_dir, self.total_steps)
        if previous is not None:
            self.metrics.say(f"the earlier run in {self.output_dir} is now in {previous}")
        for line in describe(
            self.cfg, self.student, self.teacher, self.objective.matcher, self.total_steps
        ):
            self.metrics.say(line)
        self.profiler.start()
        try:
            for epoch in range(self.cfg.epochs):
                self._train_epoch(epoch)
                self._save(epoch)
        finally:
            self.profiler.stop()
            self.metrics.close()
        summary = self._summary()
        (self.output_dir / "logs" / "summary.json").write_text(json.dumps(summary, indent=2))
        plot_losses(self.output_dir / METRICS_FILE, self.output_dir / "logs" / "loss.png")

    def _train_epoch(self, epoch: int) -> None:
        self.student.train()
        self.loader.sampler.set_epoch(epoch)
        if self.objective.matcher is not None:
            pairs = build.pairs_of_epoch(self.cfg, self.student, self.teacher, epoch)
            self.objective.set_pairs(pairs)
        groups = grouped(self.loader, self.cfg.gradient_accumulation_steps, self.placement.device)
        start = time.perf_counter()
        for _, micro_batches in zip(range(self.steps_per_epoch), groups, strict=False):
            values = self.step(micro_batches)
            self.global_step += 1
            seconds, tokens = time.perf_counter() - start, values.pop("num_tokens")
            values["tokens_per_second"] = tokens / seconds
            if self.cfg.log_peak_memory_stats:
                values["peak_memory_gib"] = peak_memory_gib(self.placement.device)
            self.seconds, self.tokens = self.seconds + seconds, self.tokens + tokens
            self.metrics.advance(values)
            if self.global_step % self.cfg.log_every_n_steps == 0:
                self.metrics.log(values, self.global_step)
            self.profiler.step()
            self._validate(epoch)
            start = time.perf_counter()

    def step(self, micro_batches: list[dict[str, Tensor]]) -> dict[str, float]:
        """One optimizer step; the returned numbers are global means per counted position.

        Raises:
            FloatingPointError: If the loss or its gradient is not finite; no weight has changed.
        """
        counts = self.placement.sum(
            torch.stack([self.objective.counts(batch) for batch in micro_batches]).sum(0)
        )
        if self.scales is not None:
            self.objective.weights = self.scales.weights()
        sums = []
        for batch in micro_batches:
            one = self.objective(batch, counts)
            one.total.backward()
            sums.append(Sums(one.total.detach(), one.parts, one.pairs))
        values = self.objective.means(sums, counts, self.placement.sum)
        clip = self.cfg.clip_grad_norm
        norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if clip is None else clip)
        values |= {f"weight/{k}": v for k, v in vars(self.objective.weights).items()}
        values |= {"grad_norm": norm.item(), "lr": self.optimizer.param_groups[0]["lr"]}
        for name, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"step {self.global_step + 1}: {name} is {value}")
        if self.scales is not None:
            self.scales.update(values)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        return values | {"num_tokens": counts[PARTS.index("ce")].item()}

    def _validate(self, epoch: int) -> None:
        every = self.cfg.run_val_every_n_steps or self.total_steps
        due = self.global_step % every == 0 or self.global_step == self.total_steps
        if self.validator is None or not due:
            return
        values = self.validator.run(self.student)
        self.metrics.log({f"val/{k}": v for k, v in values.items()}, self.global_step)
        if values["total"] < self.best:
            self.best = values["total"]
            if output.keeps_best(self.checkpointer):
                self._save(epoch, best=True)

    def _save(self, epoch: int, best: bool = False) -> None:
        last = epoch + 1 == self.cfg.epochs
        output.save_student(
            self.student,
            self.checkpointer,
            self.placement,
            epoch,
            last=last,
            adapter_only=self.cfg.save_adapter_weights_only,
            best=best,
        )

    def _summary(self) -> dict[str, float]:
        return {
            "steps": self.global_step,
            "label_tokens": self.tokens,
            "training_seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "peak_memory_gib": peak_memory_gib(self.placement.device),
        }


def _weights(checkpointer: Any) -> dict[str, Tensor]:
    return checkpointer.load_checkpoint()[training.MODEL_KEY]


def run(cfg: DictConfig, placement: Placement) -> None:
    """Check, load, train: what a recipe's main does."""
    trainer = Trainer(cfg, placement)
    trainer.load()
    trainer.train()
