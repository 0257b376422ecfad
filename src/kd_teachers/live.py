"""A teacher that is asked anew each time."""

import torch

from hf_models.model import Model
from kd_data import Batch
from kd_losses import Projected
from kd_teachers.teacher import FULL, TAPS, Needs, Signal


class Live:
    """A frozen model in memory.

    Args:
        model: It, in eval mode.
    """

    gives = frozenset({FULL, TAPS})

    def __init__(self, model: Model) -> None:
        self.model = model

    @torch.no_grad()
    def signal(self, batch: Batch, needs: Needs) -> Signal:
        """One forward, up to the deepest tap where nobody needs the logits."""
        view = self.model.view(batch.teacher_inputs(), needs.taps, logits=needs.distribution)
        if not needs.distribution:
            return Signal(None, view.taps)
        hidden = batch.at_student_positions(view.hidden)
        return Signal(Projected(hidden.flatten(0, 1), self.model.head()), view.taps)
