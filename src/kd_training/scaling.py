"""Weights of the objective's parts that follow their magnitudes."""

from kd_training.schema import Scales

_PARTS = ("ce", "kd", "ir")


class DynamicScales:
    """Weights that give each part its share of the total, whatever its magnitude.

    With m_i the running mean of part i, w_i = share_i · Σ_j m_j / m_i, so that w_i·m_i is share_i
    of the parts' plain sum. Before the first step there is no magnitude yet: w_i = share_i.

    Args:
        shares: The share of each part; a part of share 0 has weight 0.
        ema: Decay of the running mean, in [0, 1); its start is corrected for, as Adam's is.
    """

    def __init__(self, shares: Scales, ema: float) -> None:
        self._shares = {part: getattr(shares, part) for part in _PARTS}
        self._ema = ema
        self._sums = dict.fromkeys(_PARTS, 0.0)
        self._steps = 0

    def weights(self) -> Scales:
        """The weights for the next step."""
        sums = {part: self._sums[part] for part, share in self._shares.items() if share > 0}
        # A part that has been 0 all along (student = teacher) cannot be scaled up to a share.
        if self._steps == 0 or min(sums.values()) <= 0:
            return Scales(**self._shares)
        total = sum(sums.values())
        # The correction 1 / (1 - ema^steps) is the same factor in total and sums: it cancels.
        return Scales(**{p: s * total / sums[p] if s else 0.0 for p, s in self._shares.items()})

    def update(self, values: dict[str, float]) -> None:
        """Take in a step's means, unweighted."""
        self._steps += 1
        for part in _PARTS:
            new = values.get(part, 0.0)
            self._sums[part] = self._ema * self._sums[part] + (1 - self._ema) * new

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs to go on with the same weights."""
        return {"steps": self._steps, **self._sums}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over another run's magnitudes."""
        self._steps = int(state["steps"])
        self._sums = {part: state[part] for part in _PARTS}
