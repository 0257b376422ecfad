"""What a recipe's main does: prepare, then train, in a directory that no other run has."""

from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig

from kd_config.check import check_config
from kd_training.output import directory
from kd_training.output.lock import locked
from kd_training.placement.one_device import Placement
from kd_training.prepare import prepare
from kd_training.train import train


def run(cfg: DictConfig, placement: Placement) -> None:
    """Check, load, train. With ``dry_run`` it ends after the checks.

    Raises:
        ValueError: If the config, the models, the data or the output directory do not fit, or
            another run has that directory.
        OSError: If a file is missing, unreadable or cannot be written.
    """
    cfg = check_config(cfg)
    output_dir = Path(cfg.output_dir)
    directory.check_writable(output_dir)
    # The ranks meet before any of them looks at what is there.
    owner = placement.rank == 0 and not cfg.dry_run
    with locked(output_dir) if owner else nullcontext():
        if owner:
            directory.mend(output_dir)
        prepared = prepare(cfg, placement)
        if not cfg.dry_run:
            train(prepared)
        elif placement.rank == 0:
            warnings = [f"warning: {warning}" for warning in prepared.warnings]
            end = "dry run: the config, the data and the files fit"
            print("\n".join([*warnings, *prepared.records.plan(), end]))
