"""Weights of the objective's terms that follow their magnitudes."""

from collections.abc import Mapping
from typing import Any


class DynamicScales:
    """Weights that give each term its share of the total, whatever its magnitude.

    With m_i the running mean of term i, w_i = share_i · min(Σ_j m_j / m_i, max_weight), so that
    w_i·m_i is share_i of the terms' plain sum. A term that is nearly or exactly 0, as those of a
    student equal to its teacher, cannot be scaled up to its share: there the bound holds, or the
    weight would be that of rounding errors. Without any magnitude yet, w_i = share_i.

    Args:
        shares: The share of each weight's key; one of share 0 has weight 0.
        ema: Decay of the running mean, in [0, 1); its start is corrected for, as Adam's is.
        max_weight: The largest weight of a term, in multiples of its share; at least 1.
    """

    def __init__(self, shares: Mapping[str, float], ema: float, max_weight: float) -> None:
        self._shares = dict(shares)
        self._ema = ema
        self._max_weight = max_weight
        self._sums = dict.fromkeys(shares, 0.0)
        self._weight = 0.0  # 1 - ema^steps

    def weights(self) -> dict[str, float]:
        """The weights for the next step."""
        # The correction 1 / (1 - ema^steps) is the same factor in total and sums: it cancels.
        total = sum(self._sums[key] for key, share in self._shares.items() if share > 0)
        if total <= 0:
            return dict(self._shares)
        return {key: share * self._factor(total, key) for key, share in self._shares.items()}

    def _factor(self, total: float, key: str) -> float:
        # Rounding may bring a divergence that is 0 below it: no quotient of such a mean is taken.
        within = self._sums[key] * self._max_weight > total
        return total / self._sums[key] if within else self._max_weight

    def update(self, values: Mapping[str, float]) -> None:
        """Take in a step's means, unweighted; one that has none in this step keeps its own."""
        for key, old in self._sums.items():
            new = values.get(key, old / self._weight if self._weight else 0.0)
            self._sums[key] = self._ema * old + (1 - self._ema) * new
        self._weight = self._ema * self._weight + 1 - self._ema

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same weights."""
        return {"sums": dict(self._sums), "weight": self._weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over another run's magnitudes."""
        self._sums = {key: state["sums"][key] for key in self._sums}
        self._weight = state["weight"]
