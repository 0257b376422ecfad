"""What a student's model card says of the config that made it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd_config.dataset_nodes import nodes_of
from kd_config.public import environment_unresolved, public_config
from kd_config.sections import OnPolicy
from kd_config.wording import component_text, mapping_text, model_directory

_OF_A_RUN = re.compile(r"best|epoch_\d+")


@dataclass(frozen=True)
class CardFacts:
    """Words about a config for everybody: a directory is named by its last part.

    What comes from the environment stays unresolved, values of keys such as ``token`` and absolute
    paths are left out, because a card is what gets uploaded.

    Attributes:
        name: The student's.
        output_dir: As the config writes it.
        base: The student's directory as it is written; None if it has none.
        teacher: The teacher's name; None without one.
        method: What is trained, and how it is merged.
        optimizer: The optimizer and its arguments.
        precision: The dtype that is computed in.
        batch: Size of a step on each device.
        mapping: How layers are matched.
        components: Key → the component that it names, with its arguments.
        data: (what for, dataset), one for each.
        config: All of it as YAML.
        task: What the student is for.
    """

    name: str
    output_dir: str
    base: str | None
    teacher: str | None
    method: str
    optimizer: str
    precision: str
    batch: str
    mapping: str
    components: dict[str, str]
    data: list[tuple[str, str]]
    config: str
    task: str = "causal_lm"


def card_facts(cfg: DictConfig, with_teacher: bool = True, task: str = "causal_lm") -> CardFacts:
    """The facts of a config, resolved or not; of the teacher if the run has one in use."""
    with environment_unresolved():
        public = public_config(cfg)
        teacher = _teacher(public) if with_teacher else None
        rank = OmegaConf.select(public, "model.lora_rank")
        kind = "DoRA" if public.model.get("use_dora") else "LoRA"
        return CardFacts(
            name=last_part(public.output_dir),
            output_dir=str(public.output_dir),
            base=model_directory(public),
            teacher=teacher,
            method=f"{kind} of rank {rank}, merged" if rank else "all weights",
            optimizer=component_text(public.optimizer),
            precision=_precision(public, rank),
            batch=f"{public.batch_size} x {public.gradient_accumulation_steps}",
            mapping=mapping_text(public.layer_mapping),
            components=_components(public),
            data=_data(public),
            config=OmegaConf.to_yaml(public),
            task=task,
        )


def _teacher(cfg: DictConfig) -> str | None:
    """Whoever has taught, or whose kept answers have."""
    several = cfg.get("teachers") or {}
    if several:
        own = (model_directory(node) or node.get("cache") for node in several.values())
        return " and ".join(last_part(str(one)) for one in own)
    if cfg.get("teacher_model") == "base":
        return f"{last_part(model_directory(cfg) or '')} (its own base)"
    server = cfg.get("teacher_server") or {}
    found = model_directory(cfg, "teacher_") or cfg.get("teacher_cache") or server.get("model")
    found = found or server.get("url")
    return found and last_part(str(found))


def last_part(path: str) -> str:
    """The last part of a path; all of it where that is part of an interpolation.

    What a run calls its students tells too little by itself: then with the run's name.
    """
    name = Path(path).name
    if "}" in name or "${" in name:
        return path
    of_a_run = _OF_A_RUN.fullmatch(name) and Path(path).parent.name
    return f"{of_a_run}/{name}" if of_a_run else name


def _precision(cfg: DictConfig, rank: int | None) -> str:
    rounded = cfg.optimizer.get("bf16_stochastic_round") and not rank
    return cfg.dtype if cfg.dtype == "fp32" or rounded else f"{cfg.dtype} with fp32 updates"


def _components(cfg: DictConfig) -> dict[str, str]:
    nodes: dict[str, Any] = {str(key): cfg[key] for key in cfg}
    nodes |= {f"terms.{name}": node for name, node in (cfg.get("terms") or {}).items()}
    named = {key: node for key, node in nodes.items() if isinstance(node, DictConfig)}
    return {key: component_text(node) for key, node in named.items() if "_component_" in node}


def _data(cfg: DictConfig) -> list[tuple[str, str]]:
    found = []
    for key, purpose in (("dataset", "training"), ("dataset_val", "validation")):
        found += [(purpose, component_text(node)) for node in nodes_of(cfg.get(key))]
    own = OnPolicy.model_validate(cfg.get("on_policy") or {"fraction": 0})
    if own.fraction > 0:
        how = (
            f"in {own.fraction:.0%} of the steps, up to {own.max_new_tokens} tokens at temperature"
        )
        found.append(("completions by the student itself", f"{how} {own.temperature:g}"))
    return found
