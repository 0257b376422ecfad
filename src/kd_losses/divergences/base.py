"""What every divergence shares: input handling, reduction, and the gradient of one block of tokens.

Shape suffixes: N tokens, V vocabulary.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from kd_losses.functional import (
    cut_to_shared,
    drop_excluded,
    exclude,
    require,
    upcast,
    value_and_grad,
)
from kd_losses.reads import WHOLE, Reads
from kd_losses.top_k import TopK


class KDLoss(nn.Module, ABC):
    """A divergence between a teacher's and a student's next-token distribution.

    A subclass defines `per_token`. Gradients come from autograd unless it also overrides
    `per_token_and_grad`. A divergence between the two softmaxes is shorter to write as a
    `DistributionLoss`.

    One that can be computed from the teacher's most probable ids alone also defines `reads` and
    `per_token_top_k`; all others are refused where only these were kept.

    Args:
        temperature: both sides' logits are divided by it; the loss is not multiplied by its square.
        ignore_index: label of the positions that do not count.

    Raises:
        ValueError: if the temperature is not above 0.

    Attributes:
        shares_vocabulary: whether an id must mean the same token on both sides. Without, the two
            vocabularies may have any sizes.
    """

    shares_vocabulary: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # What follows from a definition belongs to it, never to one that replaced it.
        own = vars(cls)
        if "per_token" in own and "per_token_and_grad" not in own:
            cls.per_token_and_grad = KDLoss.per_token_and_grad  # type: ignore[method-assign]
        if "per_token" in own and "reads" not in own:
            cls.reads = KDLoss.reads  # type: ignore[method-assign]
        if "per_token_top_k" in own and "per_token_top_k_and_grad" not in own:
            cls.per_token_top_k_and_grad = (  # type: ignore[method-assign]
                KDLoss.per_token_top_k_and_grad
            )

    def __init__(self, *, temperature: float = 1.0, ignore_index: int = -100) -> None:
        super().__init__()
        require(temperature > 0, "temperature", temperature, "above 0")
        self.temperature = temperature
        self.ignore_index = ignore_index

    @property
    def uses_plain_log_probs(self) -> bool:
        """Whether it is a function of the log-softmaxes of the very logits, as cross-entropy is."""
        return False

    @property
    def reads(self) -> Reads:
        """What of the teacher's rows it reads."""
        return WHOLE

    @abstractmethod
    def per_token(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of every token ``[N]``.

        Args:
            student_logits: ``[N, V]``, fp32, finite; `EXCLUDED` marks ids outside the vocabulary.
            teacher_logits: likewise.
            labels: ``[N]``; ``ignore_index`` where a token has none. Most divergences ignore them.
        """

    def per_token_and_grad(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return `per_token`, and ``weight`` times its gradient w.r.t. the student's logits.

        Called with fp32 logits of heads: no id is `EXCLUDED`, and the callee may overwrite both.
        An override with a closed form folds the weight into a pass that it makes anyway.
        """
        return value_and_grad(self.per_token, student_logits, teacher_logits, labels, weight)

    def per_token_top_k(self, student_logits: Tensor, teacher: TopK, labels: Tensor) -> Tensor:
        """Return the loss of every token ``[N]`` from what was kept of the teacher.

        Args:
            student_logits: ``[N, V]``, as for `per_token`.
            teacher: N rows that have what it `reads`.
            labels: ``[N]``.
        """
        raise NotImplementedError

    def per_token_top_k_and_grad(
        self, student_logits: Tensor, teacher: TopK, labels: Tensor, weight: float
    ) -> tuple[Tensor, Tensor]:
        """Return `per_token_top_k`, and ``weight`` times its gradient w.r.t. the student's logits.

        The callee may overwrite the student's logits.
        """
        return value_and_grad(self.per_token_top_k, student_logits, teacher, labels, weight)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        normalize: bool = True,
    ) -> Tensor:
        """Return the loss over the positions whose label is not ``ignore_index``.

        Args:
            student_logits: ``[N, V]`` or ``[B, S, V]``, any floating type.
            teacher_logits: the same leading shape; no gradient flows into it.
            labels: ``[N]`` or ``[B, S]``, already shifted.
            normalize: mean over the counted positions if true, else their sum.

        Returns:
            A scalar; 0 with a zero gradient when no position counts.

        Raises:
            ValueError: if the shapes do not fit together.
        """
        check_shapes(student_logits, teacher_logits, labels)
        labels = labels.reshape(-1)
        counted = labels != self.ignore_index
        student_NV, teacher_NV = (
            upcast(logits.flatten(0, -2)[counted])
            for logits in (student_logits, teacher_logits.detach())
        )
        if self.shares_vocabulary:
            student_NV, teacher_NV = drop_excluded(*cut_to_shared(student_NV, teacher_NV))
        else:
            student_NV, teacher_NV = exclude(student_NV), exclude(teacher_NV)
        # An empty sum is 0 and still a function of the student's logits, so backward works.
        total = self.per_token(student_NV, teacher_NV, labels[counted]).sum()
        return total / counted.sum().clamp(min=1) if normalize else total

    def extra_repr(self) -> str:
        """Show the parameters in ``print(loss)``."""
        own = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "training"}
        return ", ".join(f"{name}={value}" for name, value in own.items())


def check_shapes(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> None:
    """Raise `ValueError` unless the three agree in everything but the vocabulary."""
    shapes = student_logits.shape[:-1], teacher_logits.shape[:-1], labels.shape
    if student_logits.dim() < 2 or len(set(shapes)) != 1:
        raise ValueError(
            "logits must be [N, V] or [B, S, V] and labels [N] or [B, S] to match, got student "
            f"{list(student_logits.shape)}, teacher {list(teacher_logits.shape)}, "
            f"labels {list(labels.shape)}"
        )
