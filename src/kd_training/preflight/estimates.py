"""What a run will need, before any weight is read, and whether the weights make sense, after."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from hf_models import head_weight
from hf_models.precision import compute_dtype, gather_dtype
from hf_models.torchtune_decoder.attention_mask import with_mask
from kd_data.two_tokenizers import of_teacher
from kd_losses import ForwardKLLoss, LinearKDLoss
from kd_losses.chunked.chunk_size import chunk_bytes
from kd_training.build import count_parameters
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
    cfg: DictConfig, student: Any, teacher: Any, dtype: torch.dtype, placement: Placement
) -> Memory:
    """Count bytes from the models on the meta device, the batch and the number of devices."""
    # One device takes the config of many as it is.
    shards = max(1, placement.world_size // cfg.data_parallel_replicate_dim)
    trained = _bytes(student, trained=True) * (1 + _OPTIMIZER_STATES)
    weights = (_bytes(student) + trained) / shards + _copies(cfg, student, dtype, shards)
    gathered = _gathered(student, shards) * dtype.itemsize
    teacher_weights = 0.0
    if teacher is not None:
        teacher_shards = 1 if cfg.teacher_sharding == "none" else shards
        teacher_weights = _bytes(teacher) / teacher_shards
        gathered += _gathered(teacher, teacher_shards) * dtype.itemsize
    length = OmegaConf.select(cfg, "tokenizer.max_seq_len") or _MEASURED_BY
    width = cfg.batch_size * length * student.tok_embeddings.embedding_dim * dtype.itemsize
    layers = len(student.layers)
    kept = layers * _KEPT_PER_LAYER
    if cfg.enable_activation_checkpointing:
        # Every layer's input, unless it waits on the host, and one layer at a time.
        inputs = min(layers, _INPUTS_ON_DEVICE) if cfg.enable_activation_offloading else layers
        kept = inputs + _KEPT_PER_LAYER
    num_chunks = OmegaConf.select(cfg, "loss.num_output_chunks")
    rows = None if num_chunks is None else -(-cfg.batch_size * length // num_chunks)
    vocab_size = student.tok_embeddings.num_embeddings
    logits = chunk_bytes(vocab_size, placement.device, rows)
    return Memory(weights, teacher_weights, gathered, kept * width, logits)


def _bytes(model: nn.Module, trained: bool = False) -> int:
    """Of all weights, or of those that are trained, each in its dtype."""
    kept = [p for p in model.parameters() if p.requires_grad or not trained]
    return sum(p.numel() * p.dtype.itemsize for p in kept)


def _copies(cfg: DictConfig, student: Any, dtype: torch.dtype, shards: int) -> float:
    """Of masters in ``dtype``: a layer keeps its for the backward, unless it is checkpointed."""
    gathered = shards > 1 and gather_dtype(student) is not None  # and counted as that
    if compute_dtype(student) is None or gathered:
        return 0.0
    trained, of_layers = count_parameters(student)[1], count_parameters(student.layers)[1]
    if cfg.enable_activation_checkpointing:
        trained += of_layers // len(student.layers) - of_layers
    return trained * dtype.itemsize


def _gathered(model: Any, shards: int) -> float:
    """Parameters that a rank holds at the peak beside its own shares."""
    if shards == 1:
        return 0.0
    layer = count_parameters(model.layers[0])[0]
    outside = count_parameters(model)[0] - count_parameters(model.layers)[0]
    own = 1 / shards if gather_dtype(model) is None else 0.0  # a copy in another dtype is no share
    return (1 - own) * (2 * layer + outside)


def available_memory(device: torch.device) -> float:
    """Bytes of the GPU, or of the machine for a CPU run."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    with Path("/proc/meminfo").open() as lines:
        return int(next(lines).split()[1]) * 1024


def check_disk(cfg: DictConfig, student: Any, dtype: torch.dtype, output_dir: Path) -> None:
    """Make sure that the run's students and checkpoints find room.

    Raises:
        ValueError: If they do not.
    """
    students = cfg.epochs + (cfg.dataset_val is not None)
    one = 0 if cfg.save_adapter_weights_only else count_parameters(student)[0] * dtype.itemsize
    states = (cfg.keep_last_n + 1) * _bytes(student, trained=True) * (1 + _OPTIMIZER_STATES)
    needed = students * one + states
    free = shutil.disk_usage(nearest_existing(output_dir)).free
    if needed > free:
        raise ValueError(
            f"config: output_dir {output_dir}: the run will write about {needed / _GIB:.1f} GiB, "
            f"but {free / _GIB:.1f} GiB are free; choose another or lower epochs or keep_last_n"
        )


def check_length(cfg: DictConfig, student: Any, teacher: Any) -> None:
    """Make sure that no sample can be longer than what the models take.

    Raises:
        ValueError: If the tokenizer lets longer ones pass.
    """
    teachers = "tokenizer" if cfg.teacher_tokenizer is None else "teacher_tokenizer"
    models = ("model", student, "tokenizer"), ("teacher_model", teacher, teachers)
    for key, model, tokenizer in models:
        length = OmegaConf.select(cfg, f"{tokenizer}.max_seq_len")
        if model is not None and isinstance(length, int) and length > model.max_seq_len:
            raise ValueError(
                f"config: {tokenizer}.max_seq_len is {length}, but {key} takes "
                f"{model.max_seq_len} positions; lower it, or set {key}.max_seq_len"
            )


@torch.no_grad()
def check_weights(
    student: Any, teacher: Any, batch: dict[str, Tensor], ignore_index: int
) -> list[str]:
    """Warnings about models that know less than they should of a first batch.

    Args:
        student: The student, loaded.
        teacher: The teacher, loaded; None without one.
        batch: A micro-batch on the models' device.
        ignore_index: Label of the positions without a target.
    """
    if teacher is None:
        return []
    batch = with_mask(batch)
    student_ce = _cross_entropy(student, batch, ignore_index)
    teacher_ce = _cross_entropy(teacher, of_teacher(batch), ignore_index)
    chance = math.log(head_weight(teacher).shape[0])
    warnings = []
    if teacher_ce >= chance:
        warnings.append(
            f"the teacher's cross-entropy on the first batch is {teacher_ce:.2f}, no better than "
            f"chance ({chance:.2f}); see whether its weights, tokenizer and prompts fit the data"
        )
    # With a tokenizer of its own the teacher predicts other, longer or shorter, tokens.
    if teacher_ce > student_ce and "teacher_tokens" not in batch:
        warnings.append(
            f"the teacher's cross-entropy on the first batch, {teacher_ce:.2f}, is worse than "
            f"the student's, {student_ce:.2f}; consider tuning it on the data first"
        )
    return warnings


def _cross_entropy(model: nn.Module, batch: dict[str, Any], ignore_index: int) -> float:
    was_training = model.training
    model.eval()
    hidden = model(batch["tokens"], mask=batch.get("mask"), input_pos=batch.get("input_pos"))
    model.train(was_training)
    loss = LinearKDLoss(ForwardKLLoss(ignore_index=ignore_index), ce_weight=1.0, kd_weight=0.0)
    sums = loss(
        hidden.flatten(0, 1),
        head_weight(model),
        None,
        None,
        batch["labels"].flatten(),
    )
    return (sums.ce / sums.num_tokens.clamp(min=1)).item()
