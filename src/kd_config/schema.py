"""What a run's YAML may say: every key with its type, range, default and meaning."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args, get_origin

from omegaconf import OmegaConf
from pydantic import BaseModel, Field

from kd_config.sections import (
    COMPONENT,
    LISTED,
    NAMED,
    AtLeastOne,
    CacheSettings,
    Component,
    ComponentOrName,
    Components,
    LayerProjection,
    LossScaling,
    NamedTeacher,
    Number,
    OnPolicy,
    Scales,
    Section,
    TeacherServer,
    TokenScope,
    Whole,
)

__all__ = ["COMPONENT", "LISTED", "NAMED", "SHORT", "RunConfig", "Scales", "marked", "section"]

# Words that stand for something of a key's own where else it names a component.
SHORT = {"teacher_model": "base"}


class RunConfig(Section):
    """Every key of a run. Keys that torchtune has keep torchtune's name and meaning."""

    output_dir: str = Field(description="the run's directory")
    model: Component = Field(description="the student")
    teacher_model: ComponentOrName = Field(
        None, description="the frozen teacher; base: the student without its adapter"
    )
    teacher_quantization: ComponentOrName = Field(
        None, description="nf4 or one of torchao's weight-only configs"
    )
    tokenizer: Component = Field(description="the student's tokenizer")
    teacher_tokenizer: Component = Field(
        None, description="only for a teacher whose tokenizer is another"
    )
    checkpointer: Component = Field(description="reads and writes the student")
    teacher_checkpointer: Component = Field(None, description="reads the teacher")
    teachers: dict[str, NamedTeacher] = Field(
        {}, description="several teachers of one vocabulary, by name, instead of teacher_model"
    )
    teacher_average: Literal["probabilities", "logits"] = Field(
        "probabilities", description="what of several teachers is averaged"
    )
    teacher_prompt: str | list[Any] | None = Field(
        None, description="what only the teacher reads before each text: a text, or messages"
    )
    teacher_server: TeacherServer | None = Field(
        None, description="a teacher elsewhere, over OpenAI's completions"
    )
    teacher_cache: str | None = Field(
        None, description="directory of kept answers; the teacher itself is not loaded"
    )
    cache_dir: str | None = Field(
        None, description="where kd_cache_teacher writes; null: teacher_cache"
    )
    cache: CacheSettings = Field(CacheSettings(), description="what kd_cache_teacher keeps")
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
    on_policy: OnPolicy | None = Field(None, description="text that the student writes itself")

    dataset: Components = Field(description="what is trained on")
    dataset_val: Components = Field(None, description="held-out data")
    run_val_every_n_steps: AtLeastOne | None = Field(
        None, description="validation within an epoch too"
    )
    run_val_at_start: bool = Field(False, description="validation before the first step too")
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
    found, of_names = _look(path)
    return None if of_names else found


def takes_names(path: Iterable[str]) -> bool:
    """Whether there are sections at these keys, each under a name of the user's own."""
    return _look(path)[1]


def _look(path: Iterable[str]) -> tuple[type[BaseModel] | None, bool]:
    """The section at these keys, and whether a name still stands before it."""
    found: Any = RunConfig
    of_names = False
    for name in path:
        if of_names:
            of_names = False
            continue
        field = found.model_fields.get(name)
        annotation = None if field is None else field.annotation
        kinds = [annotation, *get_args(annotation)]
        found = next((k for k in kinds if isinstance(k, type) and issubclass(k, Section)), None)
        if found is None:
            return None, False
        of_names = get_origin(annotation) is dict
    return found, of_names
