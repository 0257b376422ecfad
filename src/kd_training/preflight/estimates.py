"""What a run will need, before any weight is read."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hf_models.model import Model, ModelFacts
from hf_models.precision import compute_dtype, gather_dtype
from kd_config.components import argument
from kd_config.schema import RunConfig
from kd_losses.chunked.chunk_size import chunk_bytes
from kd_training.output.directory import nearest_existing
from kd_training.placement.one_device import Placement

_GIB = 2**30
_MEASURED_BY = 512  # positions a sample is taken to have where the tokenizer sets no limit
# Tensors of one position's width that a decoder layer keeps for its backward, MLP included.
_KEPT_PER_LAYER = 17
_INPUTS_ON_DEVICE = 5  # that torchtune's offloading leaves or has brought back
_OPTIMIZER_STATES = 2  # Adam's


@dataclass
class Memory:
    """Bytes that one device will hold, roughly.

    Attributes:
        student: Weights of the student; masters, gradients and optimizer state of what is trained;
            and the copies of masters that are computed with.
        teacher: The teacher's weights.
        gathered: What sharding has to bring together: two layers at a time, and embeddings and
            head, which stay, because the loss projects with the head outside of the forward.
        activations: What the forward keeps for the backward, for a micro-batch of longest samples.
        logits: The chunked pass's buffers.
    """

    student: float
    teacher: float
    gathered: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Their sum."""
        return sum(vars(self).values())

    def line(self, device: torch.device) -> str:
        """The estimate in one line, beside what the device has."""
        parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in vars(self).items())
        has = available_memory(device)
        warning = "; that may not fit" if has < self.total else ""
        return (
            f"memory, estimated: {self.total / _GIB:.2f} GiB per device ({parts}) "
            f"of {has / _GIB:.1f}{warning}"
        )


def estimate_memory(
    config: RunConfig,
    student: Model,
    teachers: Iterable[Model],
    dtype: torch.dtype,
    placement: Placement,
) -> Memory:
    """Count bytes from the models on the meta device, the batch and the number of devices."""
    # One device takes the config of many as it is.
    shards = max(1, placement.world_size // config.data_parallel_replicate_dim)
    trained = _bytes(student.module, trained=True) * (1 + _OPTIMIZER_STATES)
    weights = (_bytes(student.module) + trained) / shards
    weights += _copies(config, student, dtype, shards)
    gathered = _gathered(student, shards) * dtype.itemsize
    teacher_weights = 0.0
    teacher_shards = 1 if config.teacher_sharding == "none" else shards
    for teacher in teachers:
        teacher_weights += _bytes(teacher.module) / teacher_shards
        gathered += _gathered(teacher, teacher_shards) * dtype.itemsize
    positions = config.batch_size * (argument(config.tokenizer, "max_seq_len") or _MEASURED_BY)
    num_chunks = argument(config.loss, "num_output_chunks")
    rows = None if num_chunks is None else -(-positions // num_chunks)
    if student.facts.classes is not None:
        rows = config.batch_size
    logits = chunk_bytes(student.facts.outputs, placement.device, rows)
    activations = positions * _kept(config, student) * dtype.itemsize
    return Memory(weights, teacher_weights, gathered, activations, logits)


def _kept(config: RunConfig, student: Model) -> int:
    """Numbers that the layers keep of one position."""
    kept = 0
    for stack in student.facts.stacks.values():
        tensors = stack.depth * _KEPT_PER_LAYER
        if config.enable_activation_checkpointing:
            # Every layer's input, unless it waits on the host, and one layer at a time.
            offloaded = config.enable_activation_offloading
            inputs = min(stack.depth, _INPUTS_ON_DEVICE) if offloaded else stack.depth
            tensors = inputs + _KEPT_PER_LAYER
        kept += tensors * stack.width
    return kept


def _bytes(model: nn.Module, trained: bool = False) -> int:
    """Of all weights, or of those that are trained, each in its dtype."""
    kept = [p for p in model.parameters() if p.requires_grad or not trained]
    return sum(p.numel() * p.dtype.itemsize for p in kept)


def _copies(config: RunConfig, student: Model, dtype: torch.dtype, shards: int) -> float:
    """Of masters in ``dtype``: a layer keeps its for the backward, unless it is checkpointed."""
    gathered = shards > 1 and gather_dtype(student.module) is not None  # and counted as that
    if compute_dtype(student.module) is None or gathered:
        return 0.0
    trained, of_layers = count_parameters(student.module)[1], 0
    if config.enable_activation_checkpointing:
        stacks = student.stacks().values()
        of_layers = sum(count_parameters(blocks)[1] for blocks in stacks)
        one = max(count_parameters(blocks)[1] // len(blocks) for blocks in stacks)
        trained += one - of_layers
    return trained * dtype.itemsize


def _gathered(model: Model, shards: int) -> float:
    """Parameters that a rank holds at the peak beside its own shares."""
    if shards == 1:
        return 0.0
    stacks = model.stacks().values()
    layer = max(count_parameters(blocks[0])[0] for blocks in stacks)
    outside = count_parameters(model.module)[0] - count_parameters(*stacks)[0]
    # A copy in another dtype is no share.
    own = 1 / shards if gather_dtype(model.module) is None else 0.0
    return (1 - own) * (2 * layer + outside)


def available_memory(device: torch.device) -> float:
    """Bytes of the GPU, or of the machine for a CPU run."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    with Path("/proc/meminfo").open() as lines:
        return int(next(lines).split()[1]) * 1024


def check_disk(config: RunConfig, student: Model, dtype: torch.dtype) -> None:
    """Make sure that the run's students and checkpoints find room.

    Raises:
        ValueError: If they do not.
    """
    students = config.epochs + (config.dataset_val is not None)
    one = count_parameters(student.module)[0] * dtype.itemsize
    kept = _bytes(student.module, trained=True) * (1 + _OPTIMIZER_STATES)
    states = (config.keep_last_n + 1) * kept
    needed = (0 if config.save_adapter_weights_only else students * one) + states
    free = shutil.disk_usage(nearest_existing(Path(config.output_dir))).free
    if needed > free:
        raise ValueError(
            f"config: output_dir {config.output_dir}: the run will write about "
            f"{needed / _GIB:.1f} GiB, but {free / _GIB:.1f} GiB are free; choose another or lower "
            "epochs or keep_last_n"
        )


def check_length(
    config: RunConfig, student: ModelFacts, teachers: Mapping[str, ModelFacts]
) -> None:
    """Make sure that no sample can be longer than what the models take.

    Raises:
        ValueError: If the tokenizer lets longer ones pass.
    """
    theirs = "tokenizer" if config.teacher_tokenizer is None else "teacher_tokenizer"
    models = [("model", student, "tokenizer"), *((k, t, theirs) for k, t in teachers.items())]
    for key, facts, tokenizer in models:
        limit = facts.max_positions
        length = argument(getattr(config, tokenizer), "max_seq_len")
        if limit is not None and isinstance(length, int) and length > limit:
            raise ValueError(
                f"config: {tokenizer}.max_seq_len is {length}, but {key} takes "
                f"{limit} positions; lower it, or set {key}.max_seq_len"
            )


def count_parameters(*modules: nn.Module | None) -> tuple[int, int]:
    """Number of all and of trainable parameters."""
    parameters = [p for m in modules if m is not None for p in m.parameters()]
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
