"""How far the student is from the teacher on what it writes itself."""

import torch
from torch.utils.data import DataLoader

from kd_data.transfer import one_at_a_time
from kd_losses import ReverseKLLoss
from kd_teachers import check_needs
from kd_training.far_teacher import fetched
from kd_training.objective.distribution import DistributionTerm
from kd_training.objective.objective import Objective
from kd_training.on_policy.source import Completed
from kd_training.placement.one_device import Placement

NAME = "on_policy_kl"
_ROUND = -1  # no epoch's: each validation writes with the same random numbers


class OwnTextTerm(DistributionTerm):
    """KL(student‖teacher) of each token that the student has written."""

    observed = True

    def __init__(self) -> None:
        super().__init__(NAME, ReverseKLLoss(), "labels", "divergence on own text")


class OwnTextMeasure:
    """KL(student‖teacher), in nats per token, on completions of held-out prompts.

    At temperature 1 and over all tokens it is an estimate of the KL divergence of whole texts,
    divided by their length, whatever divergence was trained with.

    Args:
        objective: The run's, for its models.
        completed: Puts the student's completions into batches.
        loader: This rank's micro-batches of prompts, equally many on every rank.
        placement: Where the models live.

    Raises:
        ValueError: If there is no teacher, or it cannot be asked about new text.
    """

    def __init__(
        self,
        objective: Objective,
        completed: Completed,
        loader: DataLoader,
        placement: Placement,
    ) -> None:
        term = OwnTextTerm()
        if objective.teacher is not None:
            check_needs(objective.teacher, f"val/{NAME}", term.needs)
        self._objective = objective.with_terms([term])
        self._completed, self._loader, self._placement = completed, loader, placement

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """The divergence, and the texts' mean length; the student is in eval mode."""
        sums, counts = [], []
        # All prompts at once: side by side they take little longer than a few.
        once = (self._completed(one, _ROUND) for one in [list(self._loader)])
        ((batches, texts),) = fetched(once, self._objective.teacher, self._placement)
        for batch in one_at_a_time(batches, self._placement.device):
            counts.append(self._objective.counts(batch))
            sums.append(self._objective(batch, torch.ones_like(counts[-1])))
        total = self._placement.sum(torch.stack(counts).sum(0).cpu())
        values = self._objective.means(sums, total, self._placement.sum)
        own = torch.tensor([len(texts), sum(len(one.tokens) for one in texts)]).double()
        number, tokens = self._placement.sum(own).tolist()
        return {NAME: values[NAME], "on_policy_length": tokens / max(number, 1)}
