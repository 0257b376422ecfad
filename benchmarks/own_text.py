"""On-policy distillation beside TRL's DistillationTrainer: seconds of a step, and memory.

    python benchmarks/own_text.py --trl FOLDER        # CPU, 2 cores: about 6 minutes

SmolLM2-135M teaches 15 of its layers (LoRA, rank 64, all linear layers, fp32, reverse KL) on 8
completions of up to 64 tokens, of prompts of 32; each system in a process of its own. First every
system does one step without chance: they must write the same and come to the same divergence.
Writes benchmarks/results/own_text-cpu.{md,json,png}. TRL: pip install --no-deps --target FOLDER
trl==1.16.0
"""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from own_text_systems import SYSTEMS, OwnTextJob, OwnTextRow
from step import machine
from step_run import HERE, child

from hf_models import tokenizer

TEACHER, STUDENT = "models/SmolLM2-135M-Instruct", "models/smollm2-15-layers"
TEXTS, PROMPT = "data/reference_manual/train.jsonl", 32
BASE = next(iter(SYSTEMS))
NAME = "own_text-cpu"


def write_prompts(path: Path, number: int) -> None:
    """The beginnings of passages, of so many tokens for everyone who tokenises them."""
    own = tokenizer(TEACHER)
    rows = []
    for line in Path(TEXTS).read_text(encoding="utf-8").splitlines():
        text = own.decode(own.encode(json.loads(line)["text"], add_eos=False)[:PROMPT])
        if len(own.encode(text, add_eos=False)) == PROMPT:
            rows.append(json.dumps({"prompt": text}))
    path.write_text("\n".join(rows[:number]) + "\n", encoding="utf-8")


def measure(job: OwnTextJob, timeout: float, trl: str | None) -> OwnTextRow:
    """In a process of its own."""
    script = str(HERE / "own_text_systems.py")
    line, reason = child([script, json.dumps(asdict(job))], timeout, trl)
    return OwnTextRow(job.system, reason=reason) if reason else OwnTextRow(**json.loads(line))


def table(rows: list[OwnTextRow], checked: dict[str, float]) -> str:
    """Markdown."""
    base = next((row for row in rows if row.system == BASE and not row.reason), None)
    lines = [
        "| system | s per step | of it writing | steps/s, × TRL | tokens written | written/s | "
        "peak GB | × TRL | KL of a step without chance |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        if row.reason:
            lines.append(f"| {row.system} | not measured: {row.reason} | | | | | | | |")
            continue
        seconds, writing = median(row.seconds), median(row.writing)
        times = "" if base is None else f"{median(base.seconds) / seconds:.2f}"
        size = "" if base is None else f"{row.peak_bytes / base.peak_bytes:.2f}"
        lines.append(
            f"| {row.system} | {seconds:.2f} | {writing:.2f} | {times} | {row.tokens:.0f} | "
            f"{row.tokens / writing:.0f} | {row.peak_bytes / 1e9:.2f} | {size} | "
            f"{checked[row.system]:.6f} |"
        )
    return "\n".join(lines)


def picture(rows: list[OwnTextRow], path: Path) -> None:
    """Seconds of a step by part, and memory."""
    known = [row for row in rows if not row.reason]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
    names = [row.system for row in known]
    writing = [median(row.writing) for row in known]
    rest = [median(row.seconds) - one for row, one in zip(known, writing, strict=True)]
    left.barh(names, writing, label="writing")
    left.barh(names, rest, left=writing, label="training")
    left.set(xlabel="seconds per step", title="A step on own text")
    left.legend()
    right.barh(names, [row.peak_bytes / 1e9 for row in known], color="tab:gray")
    right.set(xlabel="GB", title="Peak memory", yticks=[])
    for axis in (left, right):
        axis.invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure the systems of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", action="append", choices=list(SYSTEMS), help="only these")
    parser.add_argument("--steps", type=int, default=4, help="timed steps; the median counts")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one process")
    parser.add_argument("--trl", help="folder that TRL was installed to")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prompts(folder / "prompts.jsonl", 8 * (1 + args.steps))
        own = {"folder": name, "teacher": TEACHER, "student": STUDENT,
               "prompts": str(folder / "prompts.jsonl")}  # fmt: skip
        rows, checked = [], {}
        for system in args.system or SYSTEMS:
            once = OwnTextJob(system, **own, warm_up=0, steps=1, greedy=True)
            checked[system] = measure(once, args.timeout, args.trl).first
            rows.append(
                measure(OwnTextJob(system, **own, steps=args.steps), args.timeout, args.trl)
            )
            print(table(rows, checked).splitlines()[-1], flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join([f"# {__doc__.splitlines()[0]}", machine(), table(rows, checked)])
    (args.output / f"{NAME}.md").write_text(text + "\n", encoding="utf-8")
    facts = {"machine": machine(), "rows": [asdict(row) for row in rows], "checked": checked}
    (args.output / f"{NAME}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if any(not row.reason for row in rows):
        picture(rows, args.output / f"{NAME}.png")


if __name__ == "__main__":
    main()
