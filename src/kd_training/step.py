"""One optimizer step."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_models.directories import give_usual_mode
from kd_data import Batch
from kd_data.batch import LOGITS
from kd_data.transfer import one_at_a_time
from kd_training.objective.objective import Objective, Sums
from kd_training.objective.scales import DynamicScales
from kd_training.placement.one_device import Placement

# The schedule moves on with a step that is passed over, be it the very first.
warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")

_AFTER_THE_PARTS = ("total", "grad_norm")


class NonFiniteError(FloatingPointError):
    """The loss or its gradient is NaN or infinite; no weight has changed."""


@dataclass
class OptimizerStep:
    """Forward and backward of a step's micro-batches, then one update of the weights.

    Args:
        objective: What is minimised.
        placement: Where the models live.
        optimizer: Over ``parameters``.
        scheduler: Of its learning rate; None to keep it.
        parameters: All that is trained, for the gradient's norm.
        scales: Weights that follow the parts' magnitudes; None for fixed ones.
        max_norm: The gradient is clipped to it; None: never.
        dump_dir: Where the micro-batches of a non-finite step are kept.
    """

    objective: Objective
    placement: Placement
    optimizer: torch.optim.Optimizer
    scheduler: Any
    parameters: list[nn.Parameter]
    scales: DynamicScales | None
    max_norm: float | None
    dump_dir: Path

    def __call__(self, micro_batches: list[Batch], number: int) -> dict[str, float]:
        """Do step ``number``; the returned numbers are global means per counted position.

        Args:
            micro_batches: On the host; one after the other goes to the device.
            number: Counted from 1.

        Raises:
            NonFiniteError: If one of them is not finite. The weights are then as before; the
                schedule has moved on.
        """
        own = torch.stack([_counts(self.objective, batch) for batch in micro_batches]).sum(0)
        summed = self.placement.sum(own).cpu()
        counts, num_labels = summed[:-1], summed[-1].item()
        if self.scales is not None:
            self.objective.weights = self.scales.weights()
        sums = []
        for batch in one_at_a_time(micro_batches, self.placement.device):
            one = self.objective(batch, counts)
            self.placement.backward(one.total)
            sums.append(Sums(one.total.detach(), one.parts, one.details))
        values = self.objective.means(sums, counts, self.placement.sum)
        max_norm = math.inf if self.max_norm is None else self.max_norm
        norm = self.placement.clip_grad_norm(self.parameters, max_norm)
        values |= {f"weight/{k}": v for k, v in self.objective.weights.items()}
        values |= {"grad_norm": norm.item(), "lr": float(self.optimizer.param_groups[0]["lr"])}
        bad = _not_finite(values)
        if bad is None:
            if self.scales is not None:
                self.scales.update(values)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        if bad is not None:
            raise NonFiniteError(
                f"step {number}: {bad} is {values[bad]}; no weight was changed and the "
                f"micro-batches {self._dump(micro_batches, number)}; lower the learning rate or "
                "mend the data, or set skip_nonfinite_steps to pass over such steps"
            )
        return values | {"num_tokens": num_labels}

    def _dump(self, micro_batches: list[Batch], number: int) -> str:
        """Keep the micro-batches, and say where; the step's own error must not get lost."""
        path = self.dump_dir / f"nonfinite_step_{number}_rank_{self.placement.rank}.safetensors"
        tensors = {
            f"{i}.{name}": tensor.cpu().contiguous()
            for i, batch in enumerate(micro_batches)
            for name, tensor in batch.tensors().items()
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)
            give_usual_mode(path)
        except (OSError, SafetensorError) as err:  # the latter for a full disk
            return f"could not be kept ({err})"
        return f"are in {path}"


def _counts(objective: Objective, batch: Batch) -> Tensor:
    """The terms' counts, and last the labelled positions."""
    labelled = batch.scopes["labels"][LOGITS].sum()
    return torch.cat([objective.counts(batch), labelled[None].double()])


def _not_finite(values: dict[str, float]) -> str | None:
    """The name to blame: a part, then one of its pairs, before the sums that they spoil."""
    order = sorted(values, key=lambda name: (name in _AFTER_THE_PARTS, "/" not in name))
    return next((name for name in order if not math.isfinite(values[name])), None)
