"""What a run's config says, in a few words, for cards and tables."""

from typing import Any

from omegaconf import DictConfig, OmegaConf


def component_text(node: Any) -> str:
    """``kd_losses.JSDistanceLoss(lambda_weight=0.9)`` of a ``_component_`` node; "" of none.

    Interpolations stay as they are written: a resolved one may hold a path or a secret of the
    machine's environment.
    """
    plain = _plain(node)
    if not isinstance(plain, dict):
        return "" if plain is None else str(plain)
    arguments = (f"{key}={value}" for key, value in plain.items() if key != "_component_")
    return f"{plain.get('_component_')}({', '.join(arguments)})"


def mapping_text(node: Any) -> str:
    """A ``layer_mapping`` as tables name it: ``forward``, ``random(seed=3)``, ``0-15, 1-20``."""
    plain = _plain(node)
    if isinstance(plain, dict):
        return component_text(plain).removeprefix("layer_mapping.")
    if isinstance(plain, list):
        return ", ".join("-".join(map(str, pair)) for pair in plain) or "none"
    return str(plain or "none")


def model_directory(cfg: DictConfig, prefix: str = "") -> str | None:
    """The student's directory, or with the prefix ``teacher_`` the teacher's; None without one."""
    for key in (f"{prefix}checkpointer", f"{prefix}model"):
        directory = OmegaConf.select(cfg, f"{key}.checkpoint_dir")
        if directory is not None:
            return str(directory)
    return None


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
