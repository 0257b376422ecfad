"""Everything that determines the rest of a run, as tensors and plain values."""

import random
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from hf_models.loading import Ties
from kd_data.sources import Source
from kd_training.objective.objective import Objective
from kd_training.objective.scales import DynamicScales
from kd_training.placement.one_device import Placement

_OPTIONS = StateDictOptions(
    ignore_frozen_params=True, flatten_optimizer_state_dict=True, strict=False
)
_MODEL, _OPTIMIZER = "model.", "optimizer."


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: The epoch that the next step belongs to.
        step_in_epoch: Steps of it that are done.
        global_step: All steps that are done.
        skipped: How many of them changed nothing, because their gradient was not finite.
        best: The lowest validation total.
        best_by: What that total was measured by; None before the first validation.
        owed: The student that is still to be exported with these weights, ``best`` or ``epoch``
            (of the epoch that has ended); None if there is none.
        newest: The last numbers of each kind, for the model card.
        seconds: Time spent in steps.
        tokens: Label tokens trained on.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    global_step: int = 0
    skipped: int = 0
    best: float = float("inf")
    best_by: str | None = None
    owed: str | None = None
    newest: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: float = 0.0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over every value."""
        for entry in fields(self):
            setattr(self, entry.name, state[entry.name])
        self.newest = dict(self.newest)


@dataclass
class RunState:
    """Everything that a checkpoint keeps.

    Args:
        student: What learns.
        objective: Its terms may have parameters and facts of their own.
        optimizer: Over all trainable parameters.
        scheduler: Of the learning rate; None without one.
        scales: Weights of the objective that follow its terms; None without them.
        source: Where the micro-batches come from.
        seed: What the run was started with.
        progress: How far the run is.
        placement: Where it runs.
    """

    student: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scales: DynamicScales | None
    source: Source
    seed: int
    progress: Progress
    placement: Placement

    def __post_init__(self) -> None:
        # JSON keeps them as plain numbers, and a schedule of tensors rounds differently.
        rates = getattr(self.scheduler, "base_lrs", ())
        if rates:
            self.scheduler.base_lrs = [float(rate) for rate in rates]

    @property
    def _trainable(self) -> nn.ModuleDict:
        return nn.ModuleDict({"student": self.student, "terms": self.objective.modules})

    def tensors_and_facts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state's tensors by name, sharded as they are, and its JSON values."""
        model, optimizer = get_state_dict(self._trainable, self.optimizer, options=_OPTIONS)
        again = Ties(self._trainable).again
        named: dict[str, Any] = {_MODEL + k: v for k, v in model.items() if k not in again}
        named |= {_OPTIMIZER + k: v for k, v in optimizer.items()}
        # A learning rate that is a tensor is one tensor for all parameters of its group.
        tensors = {
            k: v if v.dim() else v.clone() for k, v in named.items() if isinstance(v, Tensor)
        }
        facts = {
            "values": {k: v for k, v in named.items() if not isinstance(v, Tensor)},
            "scheduler": self.scheduler and self.scheduler.state_dict(),
            "scales": self.scales and self.scales.state_dict(),
            "progress": asdict(self.progress),
            "terms": self.objective.facts(),
            "source": self.source.facts(),
            "seed": self.seed,
            "rng": self.placement.gather(_random_state(self.placement.device)),
        }
        return tensors, facts

    def load(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on from what `tensors_and_facts` gave.

        The random numbers are restored where as many ranks go on as have saved; else each rank
        keeps its own, which matters to dropout alone.
        """
        named = facts["values"] | tensors
        model = {k.removeprefix(_MODEL): v for k, v in named.items() if k.startswith(_MODEL)}
        optimizer = {
            k.removeprefix(_OPTIMIZER): v for k, v in named.items() if k.startswith(_OPTIMIZER)
        }
        set_state_dict(
            self._trainable,
            self.optimizer,
            model_state_dict=model,
            optim_state_dict=optimizer,
            options=_OPTIONS,
        )
        if self.scheduler is not None and facts["scheduler"] is not None:
            self.scheduler.load_state_dict(facts["scheduler"])
        if self.scales is not None and facts["scales"] is not None:
            self.scales.load_state_dict(facts["scales"])
        self.progress.load_state_dict(facts["progress"])
        self.objective.load_facts(facts["terms"])
        if len(facts["rng"]) == self.placement.world_size:
            _set_random_state(facts["rng"][self.placement.rank], self.placement.device)


def _random_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator in use, as JSON values."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": torch.cuda.get_rng_state(device).numpy().tobytes().hex()
        if device.type == "cuda"
        else None,
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
    }


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(_bytes(state["cuda"]), device)
    np.random.set_state(tuple(state["numpy"]))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
