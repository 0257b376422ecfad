"""What the benchmarks count and draw; what they measure is told by running them."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_models import init_student
from hf_models.torchtune_decoder import builders
from hf_models.torchtune_decoder.model import DecoderModel

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
import step_clock  # noqa: E402
import step_flops  # noqa: E402
import step_report  # noqa: E402
from step_floor import floor_speed, mean_step  # noqa: E402
from step_job import Job, Row, job_of, row_of, to_json  # noqa: E402

LENGTH = 24
ATTENTION = ["q_proj", "k_proj", "v_proj", "output_proj"]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def decoders(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("flops")
    teacher = tiny.save_model(root / "teacher", request.param, num_hidden_layers=3)
    student = init_student(teacher, root / "student", num_layers=2)
    torch.manual_seed(0)
    models = [
        DecoderModel(builders.decoder(teacher)),
        DecoderModel(builders.lora_decoder(student, ATTENTION, True, lora_rank=4)),
    ]
    models[0].module.requires_grad_(False)
    models[1].module.requires_grad_(False)
    models[1].train_adapter()
    return models


def added_in_place(_, left, right, **kwargs):
    """Shapes → FLOPs of a product that torch's counter leaves out."""
    return 2 * left[0] * left[1] * right[1]


def counted(run):
    """What torch counts, in attention that multiplies whole matrices."""
    formulas = {torch.ops.aten.addmm_: added_in_place}
    with (
        FlopCounterMode(display=False, custom_mapping=formulas) as counter,
        sdpa_kernel(SDPBackend.MATH),
    ):
        run()
    return counter.get_total_flops()


def test_the_products_of_a_step_are_those_that_torch_does(decoders):
    teacher, student = decoders
    inputs = {"tokens": torch.randint(100, (1, LENGTH))}
    labelled = slice(0, LENGTH - 1)  # the last position has no next token

    def project(model, view):
        return torch.nn.functional.linear(view.hidden[0, labelled], model.head().weight)

    work = step_flops.step_work(teacher.module, student.module, [LENGTH], LENGTH - 1, causal=False)
    flops = {name: part.flops for name, part in work.items()}
    with torch.no_grad():
        seen = teacher.view(inputs)
        assert counted(lambda: teacher.view(inputs)) == flops[step_flops.TEACHER]
        assert counted(lambda: project(teacher, seen)) == flops[step_flops.TEACHER_HEAD]

    def student_step():
        project(student, student.view(inputs)).logsumexp(-1).sum().backward()

    wanted = flops[step_flops.STUDENT] + flops[step_flops.STUDENT_HEAD]
    assert counted(student_step) == wanted


def test_causal_attention_is_counted_by_the_pairs_that_see_one_another(decoders):
    module = decoders[0].module
    whole = step_flops.step_work(module, module, [LENGTH, 5], 1, causal=False)
    causal = step_flops.step_work(module, module, [LENGTH, 5], 1)
    name = step_flops.TEACHER
    assert causal[name].products == whole[name].products
    pairs = sum(1 for n in (LENGTH, 5) for q in range(n) for k in range(n) if k <= q)
    assert causal[name].attention * (LENGTH**2 + 25) == whole[name].attention * pairs


# --- records, tables and pictures

JOB = Job("torchtune", "folder", "teacher", "student", {}, [11] * 14, batch_size=2, steps=5)
FLOOR = {
    "labels": 20,
    "gflop": dict.fromkeys(step_flops.PARTS, 10.0),
    "seconds": dict.fromkeys(step_flops.PARTS, 0.05),
}
PHASES = dict.fromkeys(step_clock.PHASES, 0.1)
ROWS = [
    Row(JOB, [1.0, 0.5, 0.25], [20, 20, 20], 4 * 10**9, PHASES, 500, {"ce": 2.5}, [150, 160]),
    Row(
        replace(JOB, system="ours cached hidden"),
        [0.2, 0.2, 0.25],
        [20, 20, 20],
        10**9,
        PHASES,
        500,
        {"ce": 2.5},
        cache_bytes=5 * 10**6,
        cache_seconds=7.0,
    ),
    Row(replace(JOB, system="trl"), reason="trl is not installed"),
]


def test_records_travel_as_json():
    assert job_of(to_json(JOB)) == JOB
    assert [row_of(to_json(row)) for row in ROWS] == ROWS
    assert JOB.labels_of_step(0) == 20


def test_a_typical_step_has_the_middle_of_all_lengths():
    lengths = [*[99] * 2, 10, 20, 30, 40, 50, 60, 5, 5]  # 2 to warm up, 3 steps of 2, 2 more
    job = replace(JOB, lengths=lengths, steps=3)
    assert mean_step(job) == ([20, 50], 68)


def test_tables_compare_with_torchtune_and_the_floor():
    assert floor_speed(FLOOR, "torchtune") == pytest.approx(100)
    # Without the teacher's blocks 0.15 s of 0.2 are left.
    assert floor_speed(FLOOR, "ours cached hidden") == pytest.approx(20 / 0.15)
    base, cached, missing = step_report.table(ROWS, FLOOR).splitlines()[2:]
    assert [cell.strip() for cell in base.split("|")[2:8]] == [
        "40", "20 to 80", "40%", "1.00", "4.00", "1.00",
    ]  # fmt: skip
    assert [cell.strip() for cell in cached.split("|")[2:8]] == [
        "100", "80 to 100", "75%", "2.50", "1.00", "0.25",
    ]  # fmt: skip
    assert "5 MB, made in 7 s" in cached
    assert "trl is not installed" in missing
    assert len({line.count("|") for line in step_report.table(ROWS, FLOOR).splitlines()}) == 1
    assert f"| {0.2 * len(step_clock.PHASES):.3f} |" in step_report.phase_table(ROWS)
    assert "| all, 20 label tokens | 40.0 | 0.200 |" in step_report.floor_table(FLOOR)


def test_pictures_are_drawn(tmp_path):
    step_report.picture("title", ROWS, FLOOR, tmp_path / "step.png")
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_the_clock_gives_each_moment_to_one_phase(monkeypatch):
    now = iter(range(100))
    clock = step_clock.Clock("cpu", warm_up=1, steps=2)
    monkeypatch.setattr(clock, "_now", lambda: next(now))

    class Model:
        def forward(self):
            return self.head()

        def head(self):
            return "logits"

    model = Model()
    clock.wrap(model, "forward", step_clock.STUDENT)
    clock.wrap(model, "head", step_clock.LOSS)
    clock.start()
    for _ in clock.each(range(4)):
        assert model.forward() == "logits"
        clock.tick(7, ce=1.0)
    assert clock.seconds == [1, 1]
    assert clock.timed_labels == [7, 7]
    assert clock.profiled_labels == 7
    assert clock.first == {"ce": 1.0}
    # Seven ticks of the clock: one for the data, one for the head, one on either side of it.
    assert clock.phases[step_clock.STUDENT] == 2
    assert clock.phases[step_clock.LOSS] == 1
    assert clock.phases[step_clock.DATA] == 1
    assert sum(clock.phases.values()) == 7
