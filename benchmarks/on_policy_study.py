"""Does text that the student writes itself help? The same number of label tokens, three seeds.

    python benchmarks/on_policy_study.py            # goes on where it stopped

Runs configs/on_policy_quickstart.yaml from the same student with the fraction of its own text at 1,
at 0.5 and at 0, each with reverse KL alone, so that nothing differs but whose text it is. Given
text has 95 labels in a sample, the student's 64: the steps are chosen such that the label tokens
come to nearly the same. Runs go to out/on_policy_study, the table to
benchmarks/results/on_policy_study.md.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

CONFIG = "configs/on_policy_quickstart.yaml"
RUNS = Path("out/on_policy_study")
TABLE = Path(__file__).parent / "results" / "on_policy_study.md"
# Name → fraction, steps of each of two epochs.
ARMS = {"own text": (1.0, 20), "half and half": (0.5, 16), "given text": (0.0, 14)}
MEASURES = {"val/on_policy_kl": "KL on its own text", "val/kd": "KL on given text"}
HEAD = """Reverse KL, nats per token, on {prompts} held-out passages at the end; lower is better.
Mean ± standard deviation over {seeds} seeds; the last column is the paired difference from given
text ± its standard error. `python benchmarks/on_policy_study.py`

"""


def train(name: str, seed: int, fraction: float, steps: int, *more: str) -> dict[str, float]:
    """The last numbers of a run, which is done unless it has been."""
    folder = RUNS / f"{name.replace(' ', '_')}_{seed}"
    summary = folder / "logs" / "summary.json"
    if not summary.exists():
        tune = Path(sys.executable).with_name("tune")
        changes = [
            f"output_dir={folder}", f"seed={seed}", f"on_policy.fraction={fraction}",
            "epochs=2", f"max_steps_per_epoch={steps}", "run_val_every_n_steps=null",
            "dataset_val.split=train", "on_policy.val_prompts=34", *more,
        ]  # fmt: skip
        again = folder.exists()
        changes.append(f"resume_from_checkpoint={str(again).lower()}")
        command = [tune, "run", "kd_single_device", "--config", CONFIG, *changes]
        subprocess.run(command, check=True)
    found: dict[str, float] = json.loads(summary.read_text())
    for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines():
        found |= json.loads(line)
    return found


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def table(found: dict[str, list[dict[str, float]]], before: dict[str, float]) -> str:
    """Markdown."""
    rows = [
        f"| | label tokens | {' | '.join(MEASURES.values())} | less than given text, own |",
        "|---|---:|---:|---:|---:|",
        f"| before | 0 | {' | '.join(f'{before[name]:.3f}' for name in MEASURES)} | |",
    ]
    key = "val/on_policy_kl"
    for name, runs in found.items():
        tokens = statistics.mean(run["label_tokens"] for run in runs)
        cells = [spread([run[measure] for run in runs]) for measure in MEASURES]
        pairs = zip(found["given text"], runs, strict=True)
        less = [given[key] - run[key] for given, run in pairs]
        error = statistics.stdev(less) / math.sqrt(len(less))
        gain = "" if name == "given text" else f"{statistics.mean(less):.3f} ± {error:.3f}"
        rows.append(f"| {name} | {tokens:.0f} | {' | '.join(cells)} | {gain} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Do what is not done, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options: Any = parser.parse_args()
    before = train("before", 0, 0.0, 1, "epochs=1", "optimizer.lr=0")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    for seed in range(options.seeds):
        for name, (fraction, steps) in ARMS.items():
            found[name].append(train(name, seed, fraction, steps))
    text = HEAD.format(prompts=34, seeds=options.seeds) + table(found, before)
    TABLE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
