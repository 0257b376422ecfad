"""What a loss reads of a teacher, so that a teacher that has less is refused by it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reads:
    """What of a teacher's rows a loss reads.

    Attributes:
        whole: whether every logit, one by one; the other two then mean nothing.
        top_k: how many of the teacher's most probable ids, one by one.
        temperature: the one at which it reads the mass of all other ids together; None if it does
            not read that.
    """

    whole: bool = False
    top_k: int = 1
    temperature: float | None = None

    def missing(self, top_k: int, temperatures: Sequence[float], vocab_size: int) -> str:
        """Return what of it a teacher lacks of which only the most probable ids were kept.

        Args:
            top_k: how many ids were kept.
            temperatures: those at which the mass of the others is known.
            vocab_size: how many ids there are.

        Returns:
            What is missing and what to do about it, to be put behind the loss's name; "" if nothing
            is.
        """
        if self.whole:
            return (
                f"reads the teacher's whole distribution, but only its {top_k} most probable ids "
                "were kept: take a divergence of probabilities, such as ForwardKLLoss, or ask the "
                "teacher itself"
            )
        if min(self.top_k, vocab_size) > top_k:
            return (
                f"reads the teacher's {self.top_k} most probable ids, but {top_k} were kept: keep "
                f"{self.top_k}, or set its top_k to at most {top_k}"
            )
        if self.temperature is not None and self.temperature not in temperatures:
            return (
                f"reads the mass of all other ids at temperature {self.temperature:g}, but it was "
                f"kept at {', '.join(f'{one:g}' for one in temperatures) or 'none'}: keep it at "
                f"{self.temperature:g} too, or set the loss's temperature to one of these"
            )
        return ""


NOTHING = Reads(top_k=0)
WHOLE = Reads(whole=True)
