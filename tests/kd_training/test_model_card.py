"""The card of an exported student, read back by huggingface_hub."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from omegaconf import OmegaConf
from tiny import run_config

from kd_config.card import card_facts
from kd_losses import ForwardKLLoss
from kd_training.objective.agreement import AgreementTerm
from kd_training.objective.distribution import DistributionTerm
from kd_training.objective.labels import LabelTerm
from kd_training.objective.layers import LayerTerm
from kd_training.output.model_card import write_model_card
from layer_mapping import CosineLoss, LayerMatcher

METRICS = {
    "steps": 80, "label_tokens": 35472.0, "total": 12.5, "ce": 7.25, "kd": 4.125, "ir": 0.375,
    "weight/ce": 1.0, "weight/kd": 1.0, "weight/ir": 3.0, "val/total": 9.5, "val/ce": 5.0,
}  # fmt: skip


@pytest.fixture
def cfg():
    config = run_config(Path(), "models/big-teacher", "models/small-student", "data/train.jsonl")
    return OmegaConf.create(config | {"output_dir": "out/run", "layer_mapping": "reverse"})


def terms_of(*parts, pairs=((0, 5), (1, 2))):
    """The parts of an objective, as a run builds them."""
    kd = DistributionTerm("kd", ForwardKLLoss(), "labels", "divergence")
    kd.compared, kd.loss_key = "teacher's distribution, labels", "kd_loss"
    ir = LayerTerm("ir", "decoder", LayerMatcher(pairs, CosineLoss(), 8, 8), None, "labels")
    ir.compared, ir.loss_key = "teacher's layers, labels", "ir_loss"
    known = {"ce": LabelTerm("ce"), "kd": kd, "ir": ir, "agreement": AgreementTerm("agreement")}
    return [known[part] for part in parts]


def written(directory, cfg, metrics, terms=("ce", "kd", "ir"), **options):
    facts = card_facts(cfg, with_teacher="kd" in terms)
    path = write_model_card(directory, facts, metrics, terms_of(*terms, **options))
    assert path == directory / "README.md"
    return ModelCard.load(path)


def config_block(card):
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1])


def test_front_matter_and_facts(cfg, tmp_path):
    folder = tmp_path / "epoch_0"
    folder.mkdir()
    card = written(folder, cfg, METRICS)
    assert card.data.base_model == "small-student"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert "knowledge-distillation" in card.data.tags
    for fact in (
        "`small-student`, distilled from the frozen teacher `big-teacher`",
        "LoRA of rank 4, merged",
        "80 steps",
        "35,472 tokens",
        "| labels | `cross-entropy` | 1 | 7.25 | 5 |",
        "| teacher's distribution, labels | `kd_losses.ForwardKLLoss()` | 1 | 4.125 |  |",
        "| teacher's layers, labels | `layer_mapping.CosineLoss()` | 3 | 0.375 |  |",
        "| weighted total |  |  | 12.5 | 9.5 |",
        "`reverse`; layers matched (student-teacher): 0-5, 1-2.",
        "`torchtune.datasets.text_completion_dataset(source=json, data_files=data/train.jsonl",
        'from_pretrained("out/run/epoch_0")',
        "--model_args pretrained=out/run/epoch_0 ",
        "vllm serve out/run/epoch_0",
        "hf upload your-name/run out/run/epoch_0",
    ):
        assert fact in card.text
    assert config_block(card) == OmegaConf.to_container(cfg)
    assert str(tmp_path) not in card.content


def test_dora_is_called_so(cfg, tmp_path):
    cfg.model.use_dora = True
    assert "DoRA of rank 4, merged" in written(tmp_path, cfg, METRICS).text


@pytest.mark.parametrize(
    ("dtype", "full", "rounded", "words"),
    [
        ("fp32", False, False, ", fp32;"),
        ("bf16", False, True, ", bf16 with fp32 updates;"),  # LoRA is fp32 in any case
        ("bf16", True, False, ", bf16 with fp32 updates;"),
        ("bf16", True, True, ", bf16;"),
    ],
)
def test_what_is_kept_in_fp32_is_told(cfg, tmp_path, dtype, full, rounded, words):
    cfg.dtype = dtype
    cfg.optimizer.bf16_stochastic_round = rounded
    if full:
        cfg.model = {"_component_": "hf_models.decoder", "checkpoint_dir": "models/small-student"}
    assert words in written(tmp_path, cfg, METRICS).text


def test_environment_and_secrets_stay_out(cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    cfg.output_dir = "${oc.env:SCRATCH}/run"
    cfg.teacher_checkpointer.checkpoint_dir = "${oc.env:SCRATCH}/big-teacher"
    cfg.dataset.token = "hf_abc"
    card = written(tmp_path, cfg, METRICS)
    assert "/scratch/me" not in card.content
    assert "hf_abc" not in card.content
    assert "frozen teacher `big-teacher`" in card.text
    assert config_block(card)["dataset"]["token"] == "removed"
    assert cfg.dataset.token == "hf_abc"


def test_what_only_the_environment_knows_is_called_as_it_is_written(cfg, tmp_path, monkeypatch):
    for name in ("STUDENT", "RUN", "STEPS"):
        monkeypatch.setenv(name, f"my-{name.lower()}")
    cfg.checkpointer.checkpoint_dir = "${oc.env:STUDENT}"
    cfg.output_dir = "out/${name}"
    cfg.name = "${oc.env:RUN}"
    cfg.gradient_accumulation_steps = "${oc.env:STEPS}"
    card = written(tmp_path, cfg, METRICS)
    assert "my-" not in card.content
    assert "`${oc.env:STUDENT}`, distilled from the frozen teacher `big-teacher`" in card.text
    assert "steps of 2 x ${oc.env:STEPS} samples" in card.text
    assert OmegaConf.select(cfg, "output_dir") == "out/my-run", "the environment is back"


def test_absolute_paths_stay_out(cfg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg.output_dir = str(tmp_path / "out" / "run")
    cfg.checkpointer.checkpoint_dir = "/srv/me/models/small-student"
    cfg.dataset.data_files = [f"{tmp_path}/data/a.jsonl", "/srv/me/b.jsonl"]
    cfg.dataset.filter = "lines of /srv/me/c.jsonl, https://host/srv/me and and/or"
    cfg.ir_loss.scratch = "${oc.env:SCRATCH,/srv/me/scratch}"
    (tmp_path / "epoch_0" / "adapter").mkdir(parents=True)
    card = written(tmp_path / "epoch_0", cfg, METRICS)
    assert str(tmp_path) not in card.content
    assert card.content.replace("https://host/srv/me", "").count("/srv") == 0
    config = config_block(card)
    assert config["output_dir"] == "out/run"
    assert config["checkpointer"]["checkpoint_dir"] == "small-student"
    assert config["dataset"]["data_files"] == ["data/a.jsonl", "b.jsonl"]
    assert config["dataset"]["filter"] == "lines of c.jsonl, https://host/srv/me and and/or"
    assert config["ir_loss"]["scratch"] == "${oc.env:SCRATCH,scratch}"
    assert 'AutoModelForCausalLM.from_pretrained("out/run/epoch_0")' in card.text
    assert 'AutoModelForCausalLM.from_pretrained("small-student")' in card.text
    assert 'PeftModel.from_pretrained(base, "out/run/epoch_0/adapter")' in card.text


def test_no_teacher_and_no_layers(cfg, tmp_path):
    alone = {"total": 7.0, "ce": 7.0, "weight/ce": 1.0, "weight/kd": 0.0, "weight/ir": 0.0}
    card = written(tmp_path, cfg, alone, ["ce"])
    assert "`small-student`, tuned on labels alone" in card.text
    assert "ForwardKLLoss()" not in card.text
    assert "## Layers" not in card.text


def test_without_numbers_the_objective_is_named(cfg, tmp_path):
    cfg.model = {"_component_": "hf_models.decoder", "checkpoint_dir": "models/small-student"}
    cfg.layer_mapping = [[0, 1]]
    cfg.kd_loss = {"_component_": "kd_losses.JSDistanceLoss", "lambda_weight": 0.5}
    card = written(tmp_path, cfg, {}, pairs=[(0, 1)])
    assert "`kd_losses.JSDistanceLoss(lambda_weight=0.5)`" in card.text
    assert "all weights" in card.text
    assert "`0-1`; layers matched (student-teacher): 0-1." in card.text


def test_what_is_only_observed_has_no_weight(cfg, tmp_path):
    card = written(tmp_path, cfg, METRICS | {"agreement": 0.625}, ["ce", "kd", "agreement"])
    line = "| teacher's most probable token, labels | `same token` |  | 0.625 |  |"
    assert line in card.text
