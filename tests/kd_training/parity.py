"""How far apart two runs are."""

from pathlib import Path

from safetensors.torch import load_file
from sharded_cases import STEPS
from torch import Tensor


def logged_differences(actual: list[dict], expected: list[dict]) -> dict[str, float]:
    """All that rank 0 has logged is what one device logs: losses, pairs, validation, weights."""
    worst = {"loss": 0.0, "gradient": 0.0}
    assert [r["step"] for r in actual] == [r["step"] for r in expected]
    assert sum("total" in r for r in actual) >= STEPS
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            kind = "gradient" if name == "grad_norm" else "loss"
            difference = abs(ours[name] - value) / max(abs(value), 1e-6)
            worst[kind] = max(worst[kind], difference)
    return worst


def weight_difference(actual: Path, expected: Path, before: Path) -> float:
    """‖a − b‖ / ‖b‖ of the merged weight that differs most; ``before``: the student's directory."""
    folders = [sorted(directory.glob("epoch_*")) for directory in (actual, expected)]
    assert [f.name for f in folders[0]] == [f.name for f in folders[1]]
    ours, theirs = (load_file(f[-1] / "model.safetensors") for f in folders)
    start = load_file(before / "model.safetensors")
    assert ours.keys() == theirs.keys() == start.keys()
    assert max(relative(theirs[name], start[name]) for name in start) > 0.01, "nothing was learnt"
    return max(relative(ours[name], theirs[name]) for name in theirs)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def as_table(rows: dict[tuple[int, str], dict[str, float]]) -> str:
    """Markdown, by number of ranks and case."""
    lines = [
        f"Largest relative difference from one device after {STEPS} steps.",
        "",
        "| ranks | case | loss | gradient norm | weights |",
        "|---:|---|---:|---:|---:|",
    ]
    for (ranks, case), worst in sorted(rows.items()):
        numbers = " | ".join(f"{value:.0e}" for value in worst.values())
        lines.append(f"| {ranks} | {case} | {numbers} |")
    return "\n".join(lines) + "\n"
