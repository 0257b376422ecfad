"""Weights of the objective's parts that follow their magnitudes."""

from kd_config.schema import Scales

_PARTS = ("ce", "kd", "ir")


class DynamicScales:
    """Weights that give each part its share of the total, whatever its magnitude.

    With m_i the running mean of part i, w_i = share_i · min(Σ_j m_j / m_i, max_weight), so that
    w_i·m_i is share_i of the parts' plain sum. A part that is nearly or exactly 0, as those of a
    student equal to its teacher, cannot be scaled up to its share: there the bound holds, or the
    weight would be that of rounding errors. Without any magnitude yet, w_i = share_i.

    Args:
        shares: The share of each part; a part of share 0 has weight 0.
        ema: Decay of the running mean, in [0, 1); its start is corrected for, as Adam's is.
        max_weight: The largest weight of a part, in multiples of its share; at least 1.
    """

    def __init__(self, shares: Scales, ema: float, max_weight: float) -> None:
        self._shares = {part: getattr(shares, part) for part in _PARTS}
        self._ema = ema
        self._max_weight = max_weight
        self._sums = dict.fromkeys(_PARTS, 0.0)

    def weights(self) -> Scales:
        """The weights for the next step."""
        # The correction 1 / (1 - ema^steps) is the same factor in total and sums: it cancels.
        total = sum(self._sums[part] for part, share in self._shares.items() if share > 0)
        if total <= 0:
            return Scales(**self._shares)
        return Scales(**{p: s * self._factor(total, p) for p, s in self._shares.items()})

    def _factor(self, total: float, part: str) -> float:
        # Rounding may bring a divergence that is 0 below it: no quotient of such a mean is taken.
        within = self._sums[part] * self._max_weight > total
        return total / self._sums[part] if within else self._max_weight

    def update(self, values: dict[str, float]) -> None:
        """Take in a step's means, unweighted."""
        for part in _PARTS:
            new = values.get(part, 0.0)
            self._sums[part] = self._ema * self._sums[part] + (1 - self._ema) * new

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs to go on with the same weights."""
        return dict(self._sums)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over another run's magnitudes."""
        self._sums = {part: state[part] for part in _PARTS}
