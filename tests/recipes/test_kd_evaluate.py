"""What kd_evaluate says of a run's models, against transformers, scikit-learn and sacrebleu."""

import json
import math
import re

import families
import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, auto_class, family_config, save_family
from omegaconf import OmegaConf
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import matthews_corrcoef
from transformers import AutoTokenizer, GenerationConfig

from kd_analysis.report.compare import write_report

HELD_OUT = 12


@pytest.fixture
def finished(tune_run, tmp_path):
    """A finished run of a family, with held-out data, and what kd_evaluate prints about it."""

    def run(family, *overrides, dataset_val=None):
        teacher = save_family(tmp_path / "teacher", family)
        student = save_family(tmp_path / "student", family, 1, student=True)
        cfg = family_config(tmp_path, family, teacher, student)
        val = {"size": HELD_OUT, "seed": 5}
        cfg["dataset_val"] = dataset_val or cfg["dataset"] | val
        OmegaConf.save(OmegaConf.create(cfg), tmp_path / "run.yaml")
        code, _, err = tune_run("kd_single_device", tmp_path / "run.yaml", "optimizer.lr=0.01")
        assert code == 0, err
        code, out, err = tune_run("kd_evaluate", tmp_path / "out" / "config.yaml", *overrides)
        assert code == 0, err
        return out

    return run


def results(folder):
    (path,) = folder.glob("results_*.json")
    return json.loads(path.read_text())


def predictions(family, directory):
    model = auto_class(family).from_pretrained(directory).eval()
    samples = families.Samples(None, FAMILIES[family].task, size=HELD_OUT, seed=5)
    with torch.no_grad():
        for sample in samples:
            yield sample, model(input_ids=torch.tensor([sample["tokens"]])).logits[0]


def test_a_classifier(finished, tmp_path):
    out = finished("bert", "evaluation.name=mnli", "evaluation.batch_size=5")
    students = {
        "teacher": tmp_path / "out" / "eval" / "teacher",
        "student before": tmp_path / "out" / "eval" / "student_before",
        "student best": tmp_path / "out" / "best" / "eval",
        "student epoch_0": tmp_path / "out" / "epoch_0" / "eval",
    }
    directories = {
        "teacher": tmp_path / "teacher",
        "student before": tmp_path / "student",
        "student best": tmp_path / "out" / "best",
        "student epoch_0": tmp_path / "out" / "epoch_0",
    }
    for name, folder in students.items():
        pairs = list(predictions("bert", directories[name]))
        chosen = [logits.argmax().item() for _, logits in pairs]
        labels = [sample["labels"][0] for sample, _ in pairs]
        scores = results(folder)["results"]["mnli"]
        right = sum(a == b for a, b in zip(chosen, labels, strict=True)) / HELD_OUT
        assert scores["accuracy,none"] == pytest.approx(right)
        error = math.sqrt(right * (1 - right) / (HELD_OUT - 1))
        assert scores["accuracy_stderr,none"] == pytest.approx(error)
        assert scores["matthews,none"] == pytest.approx(matthews_corrcoef(labels, chosen))
        assert f"| {name} | {right:.3f} ± {error:.3f} |" in out
    table = (tmp_path / "out" / "evaluation.md").read_text()
    assert "mnli: 12 held-out samples" in table
    report = write_report([tmp_path / "out"], tmp_path / "out").read_text()
    assert "mnli accuracy" in report
    assert "| forward |" in report


def test_a_decoder(finished, tmp_path):
    finished("gpt2")
    total = count = 0
    for sample, logits in predictions("gpt2", tmp_path / "out" / "epoch_0"):
        labels = torch.tensor(sample["labels"][1:])
        total += F.cross_entropy(logits[:-1], labels, ignore_index=-100, reduction="sum").item()
        count += (labels != -100).sum().item()
    scores = results(tmp_path / "out" / "epoch_0" / "eval")["results"]["heldout"]
    assert scores["cross_entropy,none"] == pytest.approx(total / count, rel=1e-5)
    assert scores["perplexity,none"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_an_encoder_decoder_writes_with_beams(finished, tmp_path):
    texts = ["the loop ends", "a name is bound to an object", "numbers are immutable"]
    rows = [{"source": text, "target": texts[i - 1]} for i, text in enumerate(texts)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    held_out = {
        "_component_": "kd_data.seq2seq_dataset",
        "source": "json",
        "data_files": str(tmp_path / "rows.json"),
        "source_column": "source",
        "target_column": "target",
    }
    options = ("evaluation.num_beams=3", "evaluation.max_new_tokens=6")
    finished("t5", *options, dataset_val=held_out)
    directory = tmp_path / "out" / "epoch_0"
    model = auto_class("t5").from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    written = []
    for row in rows:
        found = model.generate(
            **tokenizer(row["source"], return_tensors="pt"),
            generation_config=GenerationConfig(
                num_beams=3, max_new_tokens=6, decoder_start_token_id=families.PAD,
                pad_token_id=families.PAD, eos_token_id=families.END,
            ),
        )  # fmt: skip
        written.append(tokenizer.decode(found[0], skip_special_tokens=True).strip())
    references = [[row["target"] for row in rows]]
    scores = results(directory / "eval")["results"]["heldout"]
    assert scores["bleu,none"] == pytest.approx(
        float(BLEU().corpus_score(written, references).score)
    )
    assert scores["chrf,none"] == pytest.approx(
        float(CHRF().corpus_score(written, references).score)
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ("evaluation.num_beam=3",),
            "evaluation.num_beam is no argument .* did you mean num_beams",
        ),
        (("dataset_val=null",), "kd_evaluate scores on dataset_val; set it"),
    ],
)
def test_mistakes_end_in_one_line(tune_run, tmp_path, overrides, words):
    teacher = save_family(tmp_path / "teacher", "bert")
    cfg = family_config(tmp_path, "bert", teacher, teacher)
    cfg["dataset_val"] = cfg["dataset"]
    OmegaConf.save(OmegaConf.create(cfg), tmp_path / "run.yaml")
    code, _, err = tune_run("kd_evaluate", tmp_path / "run.yaml", *overrides)
    assert code == 1
    assert re.search(words, err.strip().splitlines()[-1]), err
