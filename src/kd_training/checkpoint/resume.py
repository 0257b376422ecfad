"""The checkpoint that a run goes on from."""

from pathlib import Path

from kd_training.checkpoint.facts import Facts, read_facts
from kd_training.checkpoint.files import STATE_DIR, has_exported, newest_state
from kd_training.placement.one_device import Placement


def find_checkpoint(
    output_dir: Path, wanted: bool, placement: Placement
) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and warnings; every rank takes what rank 0 found intact.

    Args:
        output_dir: The run's directory.
        wanted: Whether the run is to go on.
        placement: Where it runs.

    Raises:
        ValueError: If there are checkpoints and none is intact.
    """
    found: tuple[str | None, list[str]] = (None, [])
    if wanted and placement.rank == 0:
        newest, warnings = newest_state(output_dir)
        if newest is None:
            warnings.append(
                f"resume_from_checkpoint is true, but {output_dir / STATE_DIR} has no "
                "checkpoint: starting at step 0"
            )
        found = (str(newest) if newest else None, warnings)
    chosen, warnings = placement.gather(found)[0]
    return Path(chosen) if chosen else None, warnings


def read_checkpoint(checkpoint: Path | None) -> Facts | None:
    """What the checkpoint knows, and what has been done since about what it owes."""
    if checkpoint is None:
        return None
    facts = read_facts(checkpoint)
    if has_exported(checkpoint):
        facts["progress"]["owed"] = None
    return facts
