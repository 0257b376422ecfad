"""What a run's YAML may say: every key with its type and default."""

from dataclasses import dataclass, field
from typing import Any

_REQUIRED = "???"  # OmegaConf's mark for a key without a default


@dataclass
class Scales:
    """Weight of each part of the objective: labels, teacher's distribution, intermediate layers."""

    ce: float = 1.0
    kd: float = 1.0
    ir: float = 1.0


@dataclass
class DynamicScaling:
    """Weights that follow the parts' magnitudes, so that each contributes its share.

    No weight exceeds ``max_weight`` times its share, however small its part.
    """

    shares: Scales = field(default_factory=Scales)
    ema: float = 0.99
    max_weight: float = 100.0


@dataclass
class LossScaling:
    """Free weights for the parts; when enabled it replaces ``kd_ratio``.

    With ``dynamic`` the weights follow the parts' running magnitudes, else they are fixed.
    """

    enabled: bool = False
    manual_scales: Scales = field(default_factory=Scales)
    dynamic: DynamicScaling | None = None


@dataclass
class LayerProjection:
    """When a student layer gets a linear map to the teacher's width, and its learning rate."""

    mode: str = "auto"
    lr: float | None = None


@dataclass
class TokenScope:
    """The positions that count for a part: ``labels`` (with a target) or ``all`` (no padding)."""

    kd: str = "labels"
    ir: str = "labels"


@dataclass
class RunConfig:
    """Every key of a run. Keys that torchtune has keep torchtune's name and meaning.

    Fields typed ``Any`` hold a component (``_component_`` and its arguments) or a few simple forms
    that the room they belong to explains, such as a strategy's name for ``layer_mapping``.
    """

    output_dir: str = _REQUIRED
    model: Any = _REQUIRED
    teacher_model: Any = None
    teacher_quantization: Any = None
    tokenizer: Any = _REQUIRED
    teacher_tokenizer: Any = None
    checkpointer: Any = _REQUIRED
    teacher_checkpointer: Any = None
    resume_from_checkpoint: bool = False
    save_adapter_weights_only: bool = False
    save_every_n_steps: int | None = None
    keep_last_n: int = 2
    skip_nonfinite_steps: int = 0
    dry_run: bool = False

    loss: Any = None
    kd_loss: Any = None
    kd_ratio: float = 0.5
    loss_scaling: LossScaling = field(default_factory=LossScaling)
    layer_mapping: Any = "none"
    ir_loss: Any = None
    layer_projection: LayerProjection = field(default_factory=LayerProjection)
    token_scope: TokenScope = field(default_factory=TokenScope)
    prompt_kd_loss: Any = None

    dataset: Any = _REQUIRED
    dataset_val: Any = None
    run_val_every_n_steps: int | None = None
    seed: int | None = 0
    shuffle: bool = True
    group_by_length: bool = False
    batch_size: int = 1
    batch_size_val: int | None = None
    epochs: int = 1
    max_steps_per_epoch: int | None = None
    gradient_accumulation_steps: int = 1
    num_workers: int = 0

    optimizer: Any = _REQUIRED
    lr_scheduler: Any = None
    clip_grad_norm: float | None = None
    compile: bool = False
    device: str = "cuda"
    dtype: str = "bf16"
    enable_activation_checkpointing: bool = False
    enable_activation_offloading: bool = False
    fsdp_cpu_offload: bool = False
    fsdp_reshard_after_forward: bool = True
    custom_sharded_layers: list[str] = field(default_factory=list)
    teacher_sharding: str = "full"
    data_parallel_replicate_dim: int = 1

    metric_logger: Any = None
    log_every_n_steps: int = 1
    log_peak_memory_stats: bool = False
    profiler: Any = None
