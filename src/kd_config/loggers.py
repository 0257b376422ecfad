"""The configured loggers, which are told the config."""

from typing import Any

from omegaconf import DictConfig
from torchtune.training.metric_logging import DiskLogger, StdoutLogger, TensorBoardLogger

from kd_config.components import component
from kd_config.dataset_nodes import nodes_of
from kd_config.public import log_config

# Their log_config only writes a second copy of config.yaml.
_LOCAL_LOGGERS = (DiskLogger, StdoutLogger, TensorBoardLogger)


def make_loggers(cfg: DictConfig) -> list[Any]:
    """What ``metric_logger`` names, one or several."""
    nodes = [node for node in nodes_of(cfg.metric_logger) if node is not None]
    loggers = [component(node, "metric_logger") for node in nodes]
    for logger in loggers:
        if not isinstance(logger, _LOCAL_LOGGERS):
            log_config(logger, cfg)
    return loggers
