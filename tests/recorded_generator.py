"""The student's own generator, which also writes down what it was asked and what it has said."""

import json
from pathlib import Path

from kd_training.on_policy.writer import OwnGenerator


class Recording(OwnGenerator):
    """Adds a line with seed, prompt and completion for each text.

    Args:
        student: The student.
        placement: Where it lives.
        file: What takes the lines.
        gather: See `OwnGenerator`.
    """

    def __init__(self, student, placement, file: str, gather: bool = True) -> None:
        super().__init__(student, placement, gather)
        self._file = Path(file)

    def __call__(self, prompts, sampling, stop_ids, seeds):
        """See `OwnGenerator`."""
        texts = super().__call__(prompts, sampling, stop_ids, seeds)
        with self._file.open("a", encoding="utf-8") as file:
            for seed, prompt, text in zip(seeds, prompts, texts, strict=True):
                if seed:  # 0: a rank that has nothing to write
                    file.write(json.dumps([seed, prompt.tolist(), text.tolist()]) + "\n")
        return texts


def recorded(file: Path) -> list:
    """All that was written, in the order of the seeds."""
    return sorted(json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
