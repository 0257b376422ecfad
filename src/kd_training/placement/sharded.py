"""Many devices: parameters, gradients and optimizer state sharded by FSDP2."""

import mmap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torchtune import training

from hf_models.blocks import blocks_of
from hf_models.loading import Ties
from hf_models.model import AnyRank, Model
from hf_models.precision import gather_dtype
from kd_training.placement.one_device import find_device, load_whole, read_weights

warnings.filterwarnings("ignore", message="`_get_pg_default_device`|Multiple backends are")


# For what one rank does alone, such as writing a student to a slow disk. The collectives of a step
# keep the backend's own limit, which tells a rank that hangs. One that ends is noticed at once.
_SLOW_WORK = timedelta(days=1)


class Sharded:
    """Every rank holds a share of each layer and gathers a layer just before it runs.

    Ranks come from the launcher's environment. Only rank 0 reads the weights.

    Args:
        device: Kind of the devices, ``cuda`` or ``cpu``; each rank takes its own.
        reshard_after_forward: Gather a layer again for its backward instead of keeping it.
        cpu_offload: Keep shards, gradients and optimizer state in host memory.
        custom_sharded_layers: Further modules to gather on their own, such as ``tok_embeddings``.
        shard_teacher: Shard the frozen teacher too, instead of one whole copy per device.
        replicas: Groups of ranks that each hold one sharded copy; more than 1 is hybrid sharding.

    Raises:
        ValueError: If ``replicas`` does not divide the number of ranks, or ``output`` is to be
            gathered on its own: the loss needs the head beside the model's own forward.
    """

    def __init__(
        self,
        device: str,
        *,
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
        custom_sharded_layers: Iterable[str] = (),
        shard_teacher: bool = True,
        replicas: int = 1,
    ) -> None:
        self.device = find_device(device)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo", timeout=_SLOW_WORK)
        self.command = f"--nproc_per_node {self.world_size} kd_distributed"
        names = list(custom_sharded_layers)
        if "output" in names:
            raise ValueError(
                "config: custom_sharded_layers: leave out output; the loss projects with it "
                "outside of the model's forward"
            )
        self._names = set(names)
        self._reshard = reshard_after_forward
        # The shards of CPU processes are in host memory as it is.
        self._offload = cpu_offload and self.device.type != "cpu"
        self._offload_policy = CPUOffloadPolicy() if self._offload else OffloadPolicy()
        self._shard_teacher = shard_teacher
        self._mesh = _mesh(self.device, self.world_size, replicas)

    def place(self, model: Model, checkpointer: Any) -> None:
        """Shard the model, then send each weight from rank 0 to those who hold a part of it."""
        state: dict[str, Any] = {}
        if self.rank == 0:
            state = model.complete_state(read_weights(checkpointer))
            _read_from_disk(state)
        self.wait()
        ties = Ties(model.module)
        self._shard(model)
        _keep_head(model)
        options = StateDictOptions(
            full_state_dict=True, broadcast_from_rank0=True, cpu_offload=self._offload
        )
        set_model_state_dict(model.module, state, options=options)
        ties.restore()
        model.fill_buffers(self.device)
        training.validate_no_params_on_meta_device(model.module)

    def _shard(self, model: Model) -> None:
        """Shard blocks (and what the config names) each on its own, and the rest with the model.

        torchtune's ``shard_model`` does the same, but without mixed precision.
        """
        options: dict[str, Any] = {
            "mesh": self._mesh,
            "reshard_after_forward": self._reshard,
            "mp_policy": MixedPrecisionPolicy(
                gather_dtype(model.module), reduce_dtype=torch.float32
            ),
            "offload_policy": self._offload_policy,
        }
        blocks = {id(block) for block in blocks_of(model)}
        for name, module in reversed(list(model.module.named_modules())):
            if id(module) in blocks or name in self._names:
                fully_shard(module, **options)
        fully_shard(model.module, **options)

    def place_teacher(self, model: Model, checkpointer: Any, quantization: Any = None) -> None:
        """Shard the teacher, or give every device a whole one, read from the mapped files.

        Raises:
            ValueError: If a quantised one is to be sharded.
        """
        if not self._shard_teacher:
            load_whole(model, checkpointer, self.device, quantization)
            self.wait()
        elif quantization is not None:
            raise ValueError(
                "config: teacher_quantization needs a whole teacher on each device: set "
                "teacher_sharding: none"
            )
        else:
            self.place(model, checkpointer)

    def place_module(self, module: nn.Module) -> None:
        """Shard a small module as one piece."""
        module.to(self.device)
        if any(True for _ in module.parameters()):
            fully_shard(module, mesh=self._mesh, offload_policy=self._offload_policy)

    @contextmanager
    def for_generation(self, model: Model, gather: bool) -> Iterator[AnyRank | None]:
        """Gather all weights, after which no rank waits for another; or let ranks go in step."""
        module: Any = model.module
        units = [unit for unit in module.modules() if isinstance(unit, FSDPModule)]
        if not gather:
            yield self._any
            return
        module.set_reshard_after_forward(False)
        try:
            for unit in units:
                unit.unshard()
            yield None
        finally:
            for unit in units:
                unit.reshard()
            module.set_reshard_after_forward(self._reshard)
            _keep_head(model)

    def _any(self, value: bool) -> bool:
        return bool(self.sum(torch.tensor(float(value))) > 0)

    def backward(self, total: Tensor) -> None:
        """Add the gradient summed over ranks; FSDP averages it, which is undone beforehand."""
        (total * self.world_size).backward()

    def clip_grad_norm(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Clip by the norm over all shards."""
        norm = nn.utils.clip_grad_norm_(parameters, max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def sum(self, values: Tensor) -> Tensor:
        """One all-reduce."""
        dist.all_reduce(summed := values.to(self.device, copy=True))
        return summed

    def gather(self, value: Any) -> list[Any]:
        """Every rank's plain ``value``, by rank; waits for all of them as `wait` does."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def wait(self) -> None:
        """A barrier of the hosts, whatever their devices are still at."""
        dist.barrier(self.group)

    def full_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """Gather one parameter after the other, to the host memory of rank 0."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_model_state_dict(model, options=options)
        return state


def _keep_head(model: Model) -> None:
    """Leave the head whole after a forward, for then the loss uses it.

    The root holds it, unless it is tied to embeddings that are gathered on their own.
    """
    for module in model.head_modules():
        if isinstance(module, FSDPModule):
            module.set_reshard_after_forward(False, recurse=False)


def _read_from_disk(state: dict[str, Tensor]) -> None:
    """Touch each page of memory-mapped tensors: a slow disk must not be read in a broadcast."""
    for tensor in state.values():
        tensor.detach().flatten().view(torch.uint8)[:: mmap.PAGESIZE].sum()


def _mesh(device: torch.device, world_size: int, replicas: int) -> DeviceMesh:
    if replicas < 1 or world_size % replicas:
        raise ValueError(
            f"config: data_parallel_replicate_dim is {replicas}; it must divide the {world_size} "
            "processes of --nproc_per_node x --nnodes"
        )
    if replicas == 1:
        return init_device_mesh(device.type, (world_size,))
    shape = (replicas, world_size // replicas)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
