"""Parts of a run's YAML that belong together, and the types that its keys have."""

from typing import Annotated, Any, Literal

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


class CacheSettings(Section):
    """What kd_cache_teacher keeps of the teacher's answers."""

    logits: Literal["hidden", "top_k", "none"] = Field(
        "hidden", description="final hidden states, the most probable tokens, or nothing"
    )
    k: AtLeastOne = Field(64, description="tokens that top_k keeps of each position")
    log_probs: Literal["fp32", "fp16"] = Field("fp32", description="type of top_k's numbers")
    teacher: str | None = Field(None, description="the name of the one of several teachers")
    shard_mb: AtLeastOne = Field(256, description="size of a file")


class NamedTeacher(Section):
    """One of several teachers, in memory or from a cache."""

    model: Component = Field(None, description="the frozen teacher")
    checkpointer: Component = Field(None, description="reads it")
    quantization: ComponentOrName = Field(None, description="as teacher_quantization")
    cache: str | None = Field(None, description="what kd_cache_teacher has made of it")
    weight: Weight = Field(1.0, description="its part of the average")


class OnPolicy(Section):
    """Text that the student writes itself: how much of it, and how it is written."""

    fraction: Annotated[Number, Field(ge=0, le=1)] = Field(
        1.0, description="share of the steps whose completions the student writes"
    )
    max_new_tokens: AtLeastOne = Field(256, description="the longest completion")
    temperature: Annotated[Number, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0, description="of sampling alone; 0 takes the most probable token"
    )
    top_p: Annotated[Number, Field(gt=0, le=1)] = Field(
        1.0, description="draw from the most probable tokens that together have this probability"
    )
    top_k: Annotated[Whole, Field(ge=0)] = Field(
        0, description="draw from so many most probable tokens; 0: all"
    )
    num_completions: AtLeastOne = Field(1, description="of each prompt")
    prompt_tokens: AtLeastOne | None = Field(
        None, description="length of the prompts; null: what comes before the first label"
    )
    batch_size: AtLeastOne | None = Field(
        None, description="prompts completed side by side; null: all of a step on a rank"
    )
    gather_weights: bool = Field(
        True, description="sharded models: gather all weights to write, not a block at a time"
    )
    generator: Component = Field(None, description="another writer than the student's own generate")
    log_texts_every_n_steps: AtLeastOne = Field(50, description="steps between two with texts")
    log_texts: Annotated[Whole, Field(ge=0)] = Field(4, description="texts of such a step")
    val_prompts: Annotated[Whole, Field(ge=0)] = Field(
        64, description="held-out prompts for val/on_policy_kl; 0: not measured"
    )


class TeacherServer(Section):
    """A teacher behind an OpenAI-compatible server."""

    url: str = Field(description="such as http://host:8000/v1")
    model: str | None = Field(None, description="its name there; null: the only one")
    top_k: AtLeastOne = Field(64, description="ids that it is asked for at each position")
    batch_size: AtLeastOne = Field(8, description="texts of a request")
    concurrency: AtLeastOne = Field(4, description="requests at a time")
    timeout_s: Annotated[Number, Field(gt=0)] = Field(120.0, description="for one answer")
    attempts: AtLeastOne = Field(12, description="before the run is saved and ends")
    wait_s: Annotated[Number, Field(ge=0)] = Field(
        1.0, description="between the first two; twice as long each time, a minute at most"
    )
    api_key_env: str | None = Field(None, description="environment variable that has the key")
