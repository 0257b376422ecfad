"""Divergences for knowledge distillation and one memory-bounded pass over all of them."""

from kd_losses.chunked.chunked_output import (
    ForwardKLWithChunkedOutputLoss,
    JSDistanceWithChunkedOutputLoss,
    ReverseKLWithChunkedOutputLoss,
    SymmetricKLWithChunkedOutputLoss,
    TVDistanceWithChunkedOutputLoss,
)
from kd_losses.chunked.head import Head
from kd_losses.chunked.keep import keep_top_k
from kd_losses.chunked.linear import LinearKDLoss, LinearKDOutput
from kd_losses.chunked.mixture import Mixture
from kd_losses.chunked.rows import Projected, Rows
from kd_losses.chunked.sums import RowSums, Scoped, chunked_sums
from kd_losses.chunked.terms import (
    CrossEntropy,
    Divergence,
    Entropy,
    KeptFavourites,
    RowTerm,
    TopOneAgreement,
)
from kd_losses.divergences.alpha_beta import AlphaBetaLoss
from kd_losses.divergences.base import KDLoss
from kd_losses.divergences.bild import BiLDLoss
from kd_losses.divergences.distribution import DistributionLoss
from kd_losses.divergences.dkd import DKDLoss
from kd_losses.divergences.forward_kl import ForwardKLLoss
from kd_losses.divergences.js_distance import JSDistanceLoss
from kd_losses.divergences.nkd import NKDLoss
from kd_losses.divergences.norm_kd import NormKDLoss
from kd_losses.divergences.reverse_kl import ReverseKLLoss
from kd_losses.divergences.skew_kl import SkewForwardKLLoss, SkewReverseKLLoss
from kd_losses.divergences.symmetric_kl import SymmetricKLLoss
from kd_losses.divergences.topk_kl import TopKKLLoss
from kd_losses.divergences.tv_distance import TVDistanceLoss
from kd_losses.divergences.uld import ULDLoss
from kd_losses.reads import Reads
from kd_losses.top_k import TopK

__all__ = [
    "AlphaBetaLoss",
    "BiLDLoss",
    "CrossEntropy",
    "DKDLoss",
    "DistributionLoss",
    "Divergence",
    "Entropy",
    "ForwardKLLoss",
    "ForwardKLWithChunkedOutputLoss",
    "Head",
    "JSDistanceLoss",
    "JSDistanceWithChunkedOutputLoss",
    "KDLoss",
    "KeptFavourites",
    "LinearKDLoss",
    "LinearKDOutput",
    "Mixture",
    "NKDLoss",
    "NormKDLoss",
    "Projected",
    "Reads",
    "ReverseKLLoss",
    "ReverseKLWithChunkedOutputLoss",
    "RowSums",
    "RowTerm",
    "Rows",
    "Scoped",
    "SkewForwardKLLoss",
    "SkewReverseKLLoss",
    "SymmetricKLLoss",
    "SymmetricKLWithChunkedOutputLoss",
    "TVDistanceLoss",
    "TVDistanceWithChunkedOutputLoss",
    "TopK",
    "TopKKLLoss",
    "TopOneAgreement",
    "ULDLoss",
    "chunked_sums",
    "keep_top_k",
]
