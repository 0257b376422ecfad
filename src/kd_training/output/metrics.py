"""Where a run's numbers go: the terminal, ``logs/metrics.jsonl`` and the configured loggers."""

import resource
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torchtune.training.metric_logging import WandBLogger
from tqdm import tqdm

from kd_training.output.step_lines import StepLines

METRICS_FILE = Path("logs") / "metrics.jsonl"
TEXTS_FILE = Path("logs") / "samples.jsonl"


class Metrics:
    """Fans out one dictionary of numbers a step.

    Args:
        make_loggers: Makes the loggers beside the file and the terminal, torchtune's or alike.
        output_dir: The run's directory.
        total_steps: Length of the progress bar, in optimizer steps.
        shown: Names of the numbers on the bar.
        first_step: Steps already done; what an interrupted run recorded after them is dropped.
        main: Whether this rank is the one that speaks.
    """

    def __init__(
        self,
        make_loggers: Callable[[], list[Any]],
        output_dir: Path,
        total_steps: int,
        shown: Iterable[str],
        first_step: int = 0,
        main: bool = True,
    ) -> None:
        self._main, self._shown = main, list(shown)
        if not main:
            return
        self._loggers = make_loggers()
        self._lines = StepLines(output_dir / METRICS_FILE, first_step)
        self._texts = StepLines(output_dir / TEXTS_FILE, first_step)
        self._bar = tqdm(
            total=total_steps, initial=first_step, desc="distil", unit="step", dynamic_ncols=True
        )

    def advance(self, values: dict[str, float]) -> None:
        """Move the progress bar by one step and show the parts of the loss on it."""
        if not self._main:
            return
        shown = {k: f"{values[k]:.3f}" for k in self._shown if k in values}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(1)

    def log(self, values: dict[str, float], step: int) -> None:
        """Record ``values`` everywhere; the terminal leaves out what there are many of."""
        if not self._main:
            return
        line = " ".join(f"{k} {v:.4g}" for k, v in values.items() if not _is_detail(k))
        self.say(f"step {step}/{self._bar.total} | {line}")
        self._lines.write(step, values)
        for logger in self._loggers:
            logger.log_dict(values, step=step)

    def texts(self, rows: list[dict[str, str]], step: int) -> None:
        """Record texts in ``logs/samples.jsonl``, and as a table in W&B."""
        if not self._main or not rows:
            return
        for row in rows:
            self._texts.write(step, row)
        for logger in self._loggers:
            if isinstance(logger, WandBLogger) and logger._wandb.run:
                columns = list(rows[0])
                table = logger._wandb.Table(columns, [list(row.values()) for row in rows])
                logger._wandb.log({"samples": table, "global_step": step})

    def say(self, text: str) -> None:
        """Print a line without tearing the progress bar."""
        if self._main:
            tqdm.write(text, file=sys.stdout)

    def close(self) -> None:
        """Flush and close everything."""
        if not self._main:
            return
        self._bar.close()
        self._lines.close()
        self._texts.close()
        for logger in self._loggers:
            logger.close()


def _is_detail(name: str) -> bool:
    """Whether it is one of many: a pair of layers, a weight."""
    return "/" in name.removeprefix("val/")


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: the GPU's allocator, or this process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20
