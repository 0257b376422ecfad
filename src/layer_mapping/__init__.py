"""Which student layer learns from which teacher layer, and how the two are compared."""

from layer_mapping.matcher import LayerMatcher, MatchResult
from layer_mapping.pair_losses import CosineLoss, MSELoss, NormalizedMSELoss, PairLoss
from layer_mapping.projection import Projection
from layer_mapping.relational_loss import RelationalLoss
from layer_mapping.spec import resolve, resolve_stacks
from layer_mapping.strategies import (
    STRATEGIES,
    all_to_one,
    copied,
    explicit,
    forward,
    in_order_random,
    last,
    none,
    random,
    reverse,
)
from layer_mapping.taps import LayerTaps, Tap

__all__ = [
    "STRATEGIES",
    "CosineLoss",
    "LayerMatcher",
    "LayerTaps",
    "MSELoss",
    "MatchResult",
    "NormalizedMSELoss",
    "PairLoss",
    "Projection",
    "RelationalLoss",
    "Tap",
    "all_to_one",
    "copied",
    "explicit",
    "forward",
    "in_order_random",
    "last",
    "none",
    "random",
    "resolve",
    "resolve_stacks",
    "reverse",
]
