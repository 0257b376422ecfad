"""From the config's keys of layer matching to the pairs and their losses."""

from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchtune.config._utils import _get_component_from_path

from kd_config.check import component, reason
from kd_config.kinds import expect
from kd_config.schema import Scales
from layer_mapping import LayerMatcher, PairLoss, resolve
from layer_mapping.strategies import Pair


def build_matcher(
    cfg: DictConfig, weights: Scales, student: Any, teacher: Any, device: torch.device
) -> LayerMatcher | None:
    """The matched pairs with their projections; None where intermediate layers have no weight."""
    if weights.ir == 0:
        return None
    if cfg.ir_loss is None:
        raise ValueError(f"config: layer_mapping is {cfg.layer_mapping}, so ir_loss must be set")
    pairs, loss = pairs_of_epoch(cfg, student, teacher, 0), component(cfg.ir_loss, "ir_loss")
    expect(isinstance(loss, PairLoss), cfg, "ir_loss", "a loss such as layer_mapping.CosineLoss")
    try:
        with device:
            return LayerMatcher(
                pairs,
                loss,
                student.tok_embeddings.embedding_dim,
                teacher.tok_embeddings.embedding_dim,
                projection=cfg.layer_projection.mode,
            )
    except ValueError as err:
        raise ValueError(f"config: ir_loss, layer_projection: {err}") from err


def pairs_of_epoch(cfg: DictConfig, student: Any, teacher: Any, epoch: int) -> list[Pair]:
    """The (student, teacher) layers that ``layer_mapping`` matches in an epoch."""
    spec = cfg.layer_mapping
    if OmegaConf.is_config(spec):
        spec = OmegaConf.to_container(spec, resolve=True)
    if isinstance(spec, dict):
        strategy = _get_component_from_path(spec.pop("_component_"))
        spec = partial(strategy, **spec)
    try:
        return resolve(spec, len(student.layers), len(teacher.layers), epoch)
    except Exception as err:  # a function of the user's may raise anything
        where = "" if str(err).startswith("layer_mapping") else "layer_mapping: "
        raise ValueError(f"config: {where}{reason(err)}") from err
