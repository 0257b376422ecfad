import json
import sys

import pytest
from PIL import Image

from kd_analysis.draw_strategies import main as draw_strategies
from kd_analysis.report import __main__ as report
from kd_training.output.loss_plot import Panel, plot_losses

PANELS = [Panel(name, name, "nats per token") for name in ("ce", "kd")]


def is_picture(path):
    """Whether a PNG of some size has more than one colour on it."""
    with Image.open(path) as image:
        low, high = image.convert("L").getextrema()
        return min(image.size) > 200 and low < high


def test_loss_curves_show_every_part(tmp_path):
    records = [{"step": s, "total": 9 / s, "ce": 5 / s, "kd": 4 / s} for s in range(1, 6)]
    records.append({"step": 5, "val/total": 2.0, "val/ce": 1.2})
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("\n".join(map(json.dumps, records)))
    plot_losses(metrics, tmp_path / "three.png", PANELS)
    with Image.open(tmp_path / "three.png") as three:
        width = three.width
    metrics.write_text(json.dumps({"step": 1, "total": 1.0, "ce": 1.0}))
    plot_losses(metrics, tmp_path / "two.png", PANELS)
    with Image.open(tmp_path / "two.png") as two:
        assert width == pytest.approx(two.width * 3 / 2, rel=0.02), "one panel a part"
    assert is_picture(tmp_path / "three.png")


def test_strategies_picture(tmp_path):
    draw_strategies(tmp_path / "strategies.png")
    assert is_picture(tmp_path / "strategies.png")


@pytest.fixture
def evaluated(tmp_path):
    """Two models' results as lm_eval writes them, and a run's summary."""
    for name, value in (("teacher", 41.5), ("student_after", 123456.0)):
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        results = {
            "ppl": {"word_perplexity,none": value, "word_perplexity_stderr,none": "N/A"},
            "choice": {"alias": "choice", "acc,none": 0.5, "acc_stderr,none": 0.0123},
        }  # fmt: skip
        (folder / "results_2026.json").write_text(json.dumps({"results": results}))
    summary = {"steps": 7, "label_tokens": 1234.0, "tokens_per_second": 99.6, "peak_memory_gib": 2}
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_report_puts_models_side_by_side(evaluated, monkeypatch, capsys):
    folders = [f"{name}={evaluated / name}" for name in ("teacher", "student_after")]
    monkeypatch.setattr(sys, "argv", ["report", "--run", str(evaluated), *folders])
    report.main()
    lines = capsys.readouterr().out.splitlines()
    assert "| model | ppl word_perplexity | choice acc |" in lines
    assert "| teacher | 41.500 | 0.500 ± 0.012 |" in lines
    assert "| student after | 1.23e+05 | 0.500 ± 0.012 |" in lines
    assert "trained 7 steps, 1,234 tokens: 100 tokens/s, peak memory 2.0 GiB" in lines


def test_report_without_results_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no lm_eval results"):
        report.newest_results(tmp_path)
