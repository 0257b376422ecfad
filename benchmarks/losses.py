"""Time, memory and error of the loss stage, side by side with the losses of other libraries.

    python benchmarks/losses.py                      # everything this machine can run, about 25 min
    python benchmarks/losses.py --loss ForwardKLLoss --repeats 3
    python benchmarks/losses.py --loss ForwardKLLoss --device cuda     # a minute or two

Every row is a process of its own: forward and backward from hidden states, cross-entropy included.
Times are compared with the *floor*, the three matrix products that no implementation can avoid,
timed alternately with the row in the same process. Writes a table and a picture to
benchmarks/results/. TRL and Liger are measured where they are installed: pip install -r
benchmarks/requirements.txt.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from loss_measure import Job, Row

HERE = Path(__file__).parent
LOSSES = [
    "ForwardKLLoss",
    "ReverseKLLoss",
    "SymmetricKLLoss",
    "JSDistanceLoss",
    "TVDistanceLoss",
    "SkewForwardKLLoss",
    "SkewReverseKLLoss",
    "AlphaBetaLoss",
    "TopKKLLoss",
    "BiLDLoss",
    "DKDLoss",
    "NKDLoss",
    "NormKDLoss",
]
# torchtune weighs both directions alike; TRL and Liger weigh both sides of the JSD alike.
HALF = {"SymmetricKLLoss": {"lambda_weight": 0.5}, "JSDistanceLoss": {"lambda_weight": 0.5}}
PEERS = [
    ("torchtune", ["ForwardKLLoss", "ReverseKLLoss", "SymmetricKLLoss"]),
    ("TRL", ["ForwardKLLoss", "ReverseKLLoss", "JSDistanceLoss"]),
]


def cpu_jobs(losses: list[str], repeats: int) -> Iterator[tuple[str, list[Job]]]:
    """Yield titled groups of rows for the CPU."""
    shape = "1024 tokens, width 576, vocabulary 49152, fp32, CPU"
    for unlabelled in (0.0, 0.5):
        jobs = [
            Job(system, loss, HALF.get(loss, {}), unlabelled=unlabelled, repeats=repeats)
            for system, names in [("ours", LOSSES), *PEERS]
            for loss in names
            if loss in losses
        ]
        yield f"{shape}, {unlabelled:.0%} of the labels masked", jobs
    growing = [
        Job("ours", "ForwardKLLoss", num_tokens=num_tokens, repeats=1)
        for num_tokens in (1024, 4096, 16384)
    ]
    yield "Growing batch, width 576, vocabulary 49152, fp32, CPU", growing
    chunks = [
        Job("ours", "ForwardKLLoss", chunk_size=chunk_size, repeats=repeats)
        for chunk_size in (64, 128, 256, 512, 1024)
    ]
    yield f"Memory for speed: chunk_size, {shape}", chunks


def gpu_jobs(losses: list[str], repeats: int) -> Iterator[tuple[str, list[Job]]]:
    """Yield titled groups of rows for a GPU; only there do all peers have kernels."""
    trl_losses = PEERS[1][1]
    peers = [*PEERS, ("TRL chunked", trl_losses), ("Liger", trl_losses)]
    for width in (1024, 4096):
        jobs = [
            Job(
                system,
                loss,
                HALF.get(loss, {}),
                device="cuda",
                dtype="bfloat16",
                num_tokens=8192,
                student_width=width,
                teacher_width=4096,
                vocab_size=151936,
                repeats=repeats,
            )
            for system, names in [("ours", LOSSES), *peers]
            for loss in names
            if loss in losses
        ]
        alone = [replace(job, cross_entropy=False) for job in jobs if job.loss == "ForwardKLLoss"]
        shape = f"8192 tokens, width {width} from 4096, vocabulary 151936, bf16, GPU"
        yield shape, [*jobs, *alone]


def smaller(job: Job) -> Job:
    """The same kind of row at a size that takes no time, to see it run even without a GPU."""
    width, teacher_width = job.student_width // 16, job.teacher_width // 16
    if not torch.cuda.is_available():
        job = replace(job, device="cpu", dtype="float32")
    return replace(
        job,
        num_tokens=min(job.num_tokens // 8, 256),
        student_width=width,
        teacher_width=teacher_width,
        vocab_size=1003,
        repeats=min(job.repeats, 2),
    )


def run(job: Job) -> Row:
    """Measure one row in a process of its own."""
    if job.device == "cuda" and not torch.cuda.is_available():
        return Row(job, reason="no GPU")
    command = [sys.executable, str(HERE / "loss_measure.py"), json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return Row(job, reason=(done.stderr.strip().splitlines() or ["failed"])[-1][:60])
    fields = json.loads(done.stdout.splitlines()[-1])
    return Row(**{**fields, "job": Job(**fields["job"])})


def table(rows: list[Row]) -> str:
    """Return a markdown table; errors are relative to float64."""
    lines = [
        "| system | loss | tokens | chunk | ms | median ms | × floor | peak MB | retained MB "
        "| value error | gradient error |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        chunk = row.job.chunk_size or ("auto" if row.job.system == "ours" else "")
        loss = row.job.loss + ("" if row.job.cross_entropy else " alone")
        start = f"| {row.job.system} | {loss} | {row.job.num_tokens} | {chunk} |"
        if row.reason:
            lines.append(f"{start} not measured ({row.reason}) | | | | | | |")
            continue
        value = "other definition" if row.value_error is None else f"{row.value_error:.1e}"
        lines.append(
            f"{start} {row.time_s * 1e3:.4g} | {row.median_s * 1e3:.4g} "
            f"| {row.time_s / row.floor_s:.2f} "
            f"| {row.peak_bytes / 1e6:.0f} | {row.retained_bytes / 1e6:.1f} "
            f"| {value} | {row.gradient_error:.1e} |"
        )
    return "\n".join(lines)


def environment() -> str:
    """Return the versions that were measured."""
    packages = ["torch", "torchtune", "trl", "liger-kernel"]
    present = {found.metadata["Name"].lower() for found in importlib.metadata.distributions()}
    versions = [f"{p} {importlib.metadata.version(p)}" for p in packages if p in present]
    return ", ".join([*versions, f"{torch.get_num_threads()} threads"])


def picture(title: str, rows: list[Row], path: Path) -> None:
    """Draw time over the floor and peak memory of every measured row."""
    names = [
        f"{row.job.system}: {row.job.loss.removesuffix('Loss')}"
        + ("" if row.job.cross_entropy else " alone")
        for row in rows
    ]
    colours = ["tab:blue" if row.job.system == "ours" else "tab:gray" for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.3 * len(rows) + 1.5), sharey=True)
    left.barh(names, [row.time_s / row.floor_s for row in rows], color=colours)
    left.axvline(1, color="black", linewidth=1)
    left.set_xlabel("time / time of the matrix products alone")
    right.barh(names, [row.peak_bytes / 1e6 for row in rows], color=colours)
    right.set_xscale("log")
    right.set_xlim(left=10)
    right.set_xlabel("added peak memory, MB")
    left.invert_yaxis()
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", action="append", choices=LOSSES, help="only these losses")
    parser.add_argument(
        "--repeats", type=int, default=9, help="timed runs per row; the best counts"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="only the rows of this device")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see it run")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    args = parser.parse_args()
    groups = {"cpu": cpu_jobs, "cuda": gpu_jobs}
    wanted = [args.device] if args.device else list(groups)
    found = [group for name in wanted for group in groups[name](args.loss or LOSSES, args.repeats)]
    name = "-".join(filter(None, ["losses", args.device, "quick" if args.quick else None]))
    measure_all(found, args.output / name, args.quick, args.repeats)


def measure_all(groups: list[tuple[str, list[Job]]], stem: Path, quick: bool, repeats: int) -> None:
    """Measure group after group; what is known is written after each row."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    sections = [f"# Loss stage\n\n{environment()}; ms: the best of {repeats} runs\n"]
    measured: list[Row] = []
    for number, (title, jobs) in enumerate(groups):
        rows: list[Row] = []
        for job in map(smaller, jobs) if quick else jobs:
            rows.append(run(job))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
            section = f"## {title}{', made small' if quick else ''}\n\n{table(rows)}\n"
            stem.with_suffix(".md").write_text("\n".join([*sections, section]))
            everything = [asdict(row) for row in measured + rows]
            stem.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")
        measured += rows
        sections.append(section)
        drawn = [row for row in rows if not row.reason]
        if drawn and (number == 0 or jobs[0].device == "cuda"):
            last = f"-{number}" if number else ""
            picture(title, drawn, stem.with_name(f"{stem.name}{last}.png"))
    print(f"wrote {stem}.md")


if __name__ == "__main__":
    main()
