"""Parts of a run that go wrong on purpose, for a config to name."""

import os
import signal
import socket
from collections.abc import Sequence

import torch
from torch import Tensor
from torchtune.utils import get_world_size_and_rank

from kd_losses import ForwardKLLoss
from layer_mapping import CosineLoss


class FaultyLoss(ForwardKLLoss):
    """The forward KL, one call a micro-batch; calls are counted from 1.

    Args:
        nan_at: Calls that answer NaN.
        signal_at: Calls during which ``signal_number`` reaches this process.
        signal_number: Which signal.
        kwargs: Of the forward KL.
    """

    def __init__(
        self,
        nan_at: Sequence[int] = (),
        signal_at: Sequence[int] = (),
        signal_number: int = signal.SIGTERM,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.nan_at, self.signal_at, self.number = tuple(nan_at), tuple(signal_at), signal_number
        self.calls = 0

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls in self.signal_at:
            signal.raise_signal(self.number)
        loss = super().per_token(student_logits, teacher_logits, labels)
        return loss * torch.nan if self.calls in self.nan_at else loss


class StoppedByLauncher(ForwardKLLoss):
    """The forward KL; in one call rank 0 has the launcher stopped, and waits for what it passes on.

    Args:
        at: That call, from 2: in the first, a rank gets ready to notice the signal.
        kwargs: Of the forward KL.
    """

    def __init__(self, at: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.at, self.calls = at, 0

    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 1:
            self.received, self.sent = socket.socketpair()
            self.sent.setblocking(False)
            signal.set_wakeup_fd(self.sent.fileno())  # takes a byte for each signal
        elif self.calls == self.at:
            if get_world_size_and_rank()[1] == 0:
                os.kill(os.getppid(), signal.SIGTERM)
            assert self.received.recv(1) == bytes([signal.SIGTERM])
        return super().per_token(student_logits, teacher_logits, labels)


class FaultyPairs(CosineLoss):
    """The cosine loss, one call a pair and micro-batch, with one call that goes wrong.

    Args:
        nan_at: The call that answers NaN.
        nan_gradient_at: The call whose answer is right, but whose gradient is NaN.
        kwargs: Of the cosine loss.
    """

    def __init__(self, nan_at: int = 0, nan_gradient_at: int = 0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.nan_at, self.nan_gradient_at, self.calls = nan_at, nan_gradient_at, 0

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        self.calls += 1
        distance = super().distance(student, teacher)
        if self.calls == self.nan_at:
            return distance * torch.nan
        if self.calls == self.nan_gradient_at:
            return distance + (0 * student.sum()).sqrt()  # 0, with the slope 0 · ∞
        return distance
