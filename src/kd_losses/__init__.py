"""Divergences for knowledge distillation and one memory-bounded pass over all of them."""

from kd_losses.alpha_beta import AlphaBetaLoss
from kd_losses.base import KDLoss
from kd_losses.bild import BiLDLoss
from kd_losses.chunked_output import (
    ForwardKLWithChunkedOutputLoss,
    JSDistanceWithChunkedOutputLoss,
    ReverseKLWithChunkedOutputLoss,
    SymmetricKLWithChunkedOutputLoss,
    TVDistanceWithChunkedOutputLoss,
)
from kd_losses.distribution import DistributionLoss
from kd_losses.dkd import DKDLoss
from kd_losses.forward_kl import ForwardKLLoss
from kd_losses.js_distance import JSDistanceLoss
from kd_losses.linear import LinearKDLoss, LinearKDOutput
from kd_losses.nkd import NKDLoss
from kd_losses.norm_kd import NormKDLoss
from kd_losses.reverse_kl import ReverseKLLoss
from kd_losses.skew_kl import SkewForwardKLLoss, SkewReverseKLLoss
from kd_losses.symmetric_kl import SymmetricKLLoss
from kd_losses.topk_kl import TopKKLLoss
from kd_losses.tv_distance import TVDistanceLoss
from kd_losses.uld import ULDLoss

__all__ = [
    "AlphaBetaLoss",
    "BiLDLoss",
    "DKDLoss",
    "DistributionLoss",
    "ForwardKLLoss",
    "ForwardKLWithChunkedOutputLoss",
    "JSDistanceLoss",
    "JSDistanceWithChunkedOutputLoss",
    "KDLoss",
    "LinearKDLoss",
    "LinearKDOutput",
    "NKDLoss",
    "NormKDLoss",
    "ReverseKLLoss",
    "ReverseKLWithChunkedOutputLoss",
    "SkewForwardKLLoss",
    "SkewReverseKLLoss",
    "SymmetricKLLoss",
    "SymmetricKLWithChunkedOutputLoss",
    "TVDistanceLoss",
    "TVDistanceWithChunkedOutputLoss",
    "TopKKLLoss",
    "ULDLoss",
]
