"""Where a run's numbers go: the terminal, ``logs/metrics.jsonl`` and the configured loggers."""

import json
import math
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch
from omegaconf import DictConfig, ListConfig
from torchtune.training.metric_logging import DiskLogger, StdoutLogger, TensorBoardLogger
from tqdm import tqdm

from kd_config.check import component
from kd_config.public import log_config
from kd_training.placement.writing import WriteError

METRICS_FILE = Path("logs") / "metrics.jsonl"
_DETAIL = re.compile(r"\bir/|\bweight/")
# Their log_config only writes a second copy of config.yaml.
_LOCAL_LOGGERS = (DiskLogger, StdoutLogger, TensorBoardLogger)


class Metrics:
    """Fans out one dictionary of numbers a step.

    Args:
        cfg: The run's config; ``metric_logger`` is one of torchtune's loggers or a list of them.
        output_dir: The run's directory.
        total_steps: Length of the progress bar, in optimizer steps.
        first_step: Steps already done; what an interrupted run recorded after them is dropped.
        main: Whether this rank is the one that speaks.
    """

    def __init__(
        self,
        cfg: DictConfig,
        output_dir: Path,
        total_steps: int,
        first_step: int = 0,
        main: bool = True,
    ) -> None:
        self._main = main
        if not main:
            return
        nodes = (
            cfg.metric_logger if isinstance(cfg.metric_logger, ListConfig) else [cfg.metric_logger]
        )
        self._loggers = [component(node, "metric_logger") for node in nodes if node is not None]
        for logger in self._loggers:
            if not isinstance(logger, _LOCAL_LOGGERS):
                log_config(logger, cfg)
        path = output_dir / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_after(path, first_step)
        self._file = path.open("a", encoding="utf-8")
        self._bar = tqdm(
            total=total_steps, initial=first_step, desc="distil", unit="step", dynamic_ncols=True
        )

    def advance(self, values: dict[str, float]) -> None:
        """Move the progress bar by one step and show the parts of the loss on it."""
        if not self._main:
            return
        shown = ("total", "ce", "kd", "ir", "prompt_kd")
        self._bar.set_postfix({k: f"{values[k]:.3f}" for k in shown if k in values}, refresh=False)
        self._bar.update(1)

    def log(self, values: dict[str, float], step: int) -> None:
        """Record ``values`` everywhere; the terminal leaves out what there are many of."""
        if not self._main:
            return
        line = " ".join(f"{k} {v:.4g}" for k, v in values.items() if not _DETAIL.search(k))
        self.say(f"step {step}/{self._bar.total} | {line}")
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as err:
            raise WriteError(f"{self._file.name} could not be written: {err}") from err
        for logger in self._loggers:
            logger.log_dict(values, step=step)

    def say(self, text: str) -> None:
        """Print a line without tearing the progress bar."""
        if self._main:
            tqdm.write(text, file=sys.stdout)

    def close(self) -> None:
        """Flush and close everything."""
        if not self._main:
            return
        self._bar.close()
        # Every line was flushed when it was written: what fails now has been reported.
        with suppress(OSError):
            self._file.close()
        for logger in self._loggers:
            logger.close()


def _drop_after(path: Path, step: int) -> None:
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = path.with_name(f".{path.name}.partial")
        kept.write_text("".join(line for line in lines if _step(line) <= step), encoding="utf-8")
        kept.replace(path)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # the last line of a killed process
        return math.inf


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: the GPU's allocator, or this process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20
