"""What a run's YAML may say: every key with its type, range, default and meaning."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from omegaconf import OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# Marks of keys that hold a component: `_component_` and its arguments.
COMPONENT, LISTED, NAMED = "component", "listed", "named"
Component = Annotated[Any, COMPONENT]
Components = Annotated[Any, COMPONENT, LISTED]  # one, or a list of them
ComponentOrName = Annotated[Any, COMPONENT, NAMED]  # or a short form of the key's own


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # to Python it is a number
        raise ValueError("is a truth value")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]
AtLeastOne = Annotated[Whole, Field(ge=1)]
Weight = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
Positions = Literal["labels", "all"]


class Section(BaseModel):
    """Keys that belong together; a misspelt one is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, coerce_numbers_to_str=True
    )


class Scales(Section):
    """Weight of each part of the objective; a term of your own has its name as key."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Weight]

    ce: Weight = Field(1.0, description="of the labels")
    kd: Weight = Field(1.0, description="of the teacher's distribution")
    ir: Weight = Field(1.0, description="of the intermediate layers")

    def by_name(self) -> dict[str, float]:
        """All weights."""
        return self.model_dump()


class DynamicScaling(Section):
    """Weights that follow the parts' magnitudes, so that each contributes its share."""

    shares: Scales = Field(Scales(), description="each part's share of the total")
    ema: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.99, description="decay of the running magnitudes"
    )
    max_weight: Annotated[Number, Field(ge=1, allow_inf_nan=False)] = Field(
        100.0, description="a weight's bound, in multiples of its share"
    )


class LossScaling(Section):
    """Free weights for the parts; when enabled it replaces ``kd_ratio``."""

    enabled: bool = Field(False, description="whether it replaces kd_ratio")
    manual_scales: Scales = Field(Scales(), description="fixed weights")
    dynamic: DynamicScaling | None = Field(None, description="weights that follow magnitudes")


class LayerProjection(Section):
    """When a student layer gets a linear map to the teacher's width."""

    mode: Literal["auto", "always", "never"] = Field(
        "auto", description="auto: where widths differ and the loss needs equal ones"
    )
    lr: Annotated[Number, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="the maps' learning rate; null: the optimizer's"
    )


class TokenScope(Section):
    """The positions that count for a part: with a target, or all that are no padding."""

    kd: Positions = Field("labels", description="of the teacher's distribution")
    ir: Positions | dict[str, Positions] = Field(
        "labels", description="of the intermediate layers, for each stack where there are several"
    )


class RunConfig(Section):
    """Every key of a run. Keys that torchtune has keep torchtune's name and meaning."""

    output_dir: str = Field(description="the run's directory")
    model: Component = Field(description="the student")
    teacher_model: Component = Field(None, description="the frozen teacher")
    teacher_quantization: ComponentOrName = Field(
        None, description="nf4 or one of torchao's weight-only configs"
    )
    tokenizer: Component = Field(description="the student's tokenizer")
    teacher_tokenizer: Component = Field(
        None, description="only for a teacher whose tokenizer is another"
    )
    checkpointer: Component = Field(description="reads and writes the student")
    teacher_checkpointer: Component = Field(None, description="reads the teacher")
    resume_from_checkpoint: bool = Field(False, description="go on from the newest checkpoint")
    save_adapter_weights_only: bool = Field(False, description="export the adapter alone")
    save_every_n_steps: AtLeastOne | None = Field(
        None, description="checkpoints within an epoch too"
    )
    keep_last_n: AtLeastOne = Field(2, description="checkpoints that stay")
    skip_nonfinite_steps: Annotated[Whole, Field(ge=0)] = Field(
        0, description="steps with a NaN or infinite gradient that may be passed over"
    )
    dry_run: bool = Field(False, description="check everything, print the plan, end")

    loss: Component = Field(None, description="plain cross-entropy; num_output_chunks")
    kd_loss: Component = Field(None, description="the divergence from the teacher")
    kd_ratio: Annotated[Number, Field(ge=0, le=1)] = Field(
        0.5, description="total = (1 - kd_ratio) CE + kd_ratio KD + ir IR"
    )
    loss_scaling: LossScaling = Field(LossScaling(), description="free weights of the parts")
    layer_mapping: ComponentOrName = Field(
        "none", description="which student layer learns from which teacher layer"
    )
    ir_loss: Component = Field(None, description="how two layers are compared")
    layer_projection: LayerProjection = Field(
        LayerProjection(), description="maps between layers of different widths"
    )
    token_scope: TokenScope = Field(TokenScope(), description="positions that count")
    prompt_kd_loss: Component = Field(
        None, description="a second divergence, for the positions without a label"
    )
    log_agreement: bool = Field(
        False, description="log how often student and teacher have the same most probable token"
    )
    terms: dict[str, Component] = Field(
        {}, description="further terms of the loss, by the name of their weight"
    )

    dataset: Components = Field(description="what is trained on")
    dataset_val: Components = Field(None, description="held-out data")
    run_val_every_n_steps: AtLeastOne | None = Field(
        None, description="validation within an epoch too"
    )
    seed: Annotated[Whole, Field(ge=0, lt=2**31)] | None = Field(
        0, description="null: one is drawn"
    )
    shuffle: bool = Field(True, description="draw the order of the samples")
    group_by_length: bool = Field(False, description="samples of similar length share a step")
    batch_size: AtLeastOne = Field(1, description="samples of a micro-batch on each device")
    batch_size_val: AtLeastOne | None = Field(None, description="null: batch_size")
    epochs: AtLeastOne = Field(1, description="passes over the data")
    max_steps_per_epoch: AtLeastOne | None = Field(None, description="null: all")
    gradient_accumulation_steps: AtLeastOne = Field(1, description="micro-batches of a step")
    num_workers: Annotated[Whole, Field(ge=0)] = Field(
        0, description="processes on each rank that read ahead"
    )

    optimizer: Component = Field(description="torch's, torchao's, ...")
    lr_scheduler: Component = Field(None, description="one of torchtune's")
    clip_grad_norm: Annotated[Number, Field(gt=0)] | None = Field(
        None, description="bound of the gradient's norm"
    )
    compile: bool = Field(False, description="compile the models block by block")
    device: str = Field("cuda", description="cuda or cpu")
    dtype: Literal["fp32", "bf16"] = Field("bf16", description="what is computed in")
    enable_activation_checkpointing: bool = Field(
        False, description="run each block once more in the backward"
    )
    enable_activation_offloading: bool = Field(
        False, description="keep checkpointed activations in host memory"
    )
    fsdp_cpu_offload: bool = Field(False, description="keep shards in host memory")
    fsdp_reshard_after_forward: bool = Field(
        True, description="gather a block again for its backward"
    )
    custom_sharded_layers: list[str] = Field(
        [], description="further modules to gather on their own, such as tok_embeddings"
    )
    teacher_sharding: Literal["full", "none"] = Field(
        "full", description="none: a whole teacher on each device"
    )
    data_parallel_replicate_dim: AtLeastOne = Field(
        1, description="groups of ranks that each hold the whole model"
    )

    metric_logger: Components = Field(None, description="one of torchtune's, or a list")
    log_every_n_steps: AtLeastOne = Field(1, description="steps between two logged ones")
    log_peak_memory_stats: bool = Field(False, description="log each step's peak memory")
    profiler: Component = Field(None, description="torchtune's setup_torch_profiler")

    def plain(self, keys: Iterable[str]) -> dict[str, Any]:
        """What these keys hold, without components' types."""
        return {key: _plain(getattr(self, key)) for key in keys}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def marked(mark: str) -> list[str]:
    """The keys of a run with this mark, in the order of the schema."""
    return [name for name, field in RunConfig.model_fields.items() if mark in field.metadata]


def section(path: Iterable[str]) -> type[BaseModel] | None:
    """The section at these keys; the run itself for none; None where there is no section."""
    found: Any = RunConfig
    for name in path:
        field = found.model_fields.get(name)
        annotation = None if field is None else field.annotation
        kinds = [annotation, *get_args(annotation)]
        found = next((k for k in kinds if isinstance(k, type) and issubclass(k, Section)), None)
        if found is None:
            return None
    return found
