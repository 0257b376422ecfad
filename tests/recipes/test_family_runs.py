"""Every family through the command line: trained, exported, opened by transformers, resumed."""

import logging

import peft
import pytest
import torch
import transformers
from families import FAMILIES, Samples, auto_class, family_config
from omegaconf import OmegaConf
from safetensors.torch import load_file

from kd_training import OneDevice, prepare
from kd_training.train import load

LORA = ("model._component_=hf_models.lora_auto_model", "model.lora_rank=4")


@pytest.fixture
def write_config(directories, tmp_path):
    """A config of a family as a file, with changes by dotted key."""

    def write(family, changes=None):
        cfg = OmegaConf.create(family_config(tmp_path, family, *directories(family)))
        for key, value in (changes or {}).items():
            OmegaConf.update(cfg, key, value, force_add=True)
        OmegaConf.save(cfg, tmp_path / f"{family}.yaml")
        return tmp_path / f"{family}.yaml"

    return write


def logits(model, family, samples):
    """Of a model of transformers, sample by sample."""
    found = []
    for sample in samples:
        inputs = {"input_ids": torch.tensor([sample["tokens"]])}
        if FAMILIES[family].task == "seq2seq_lm":
            inputs["labels"] = torch.tensor([sample["labels"]])
        with torch.no_grad():
            found.append(model(**inputs).logits.flatten())
    return torch.cat(found)


def opened(family, directory, caplog):
    """The exported model, which transformers opens without a word."""
    caplog.clear()
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    model, report = auto_class(family).from_pretrained(directory, output_loading_info=True)
    logger.removeHandler(caplog.handler)
    assert not any(report.values()), report
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    transformers.AutoTokenizer.from_pretrained(directory)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_and_opens_in_transformers(
    tune_run, write_config, directories, tmp_path, family, caplog
):
    path = write_config(family, {"optimizer.lr": 0.01})
    code, _, err = tune_run("kd_single_device", path, *LORA)
    assert code == 0, err
    student = tmp_path / "out" / "epoch_0"
    samples = list(Samples(None, FAMILIES[family].task, size=3, seed=9))
    merged = logits(opened(family, student, caplog), family, samples)
    base = auto_class(family).from_pretrained(directories(family)[1]).eval()
    before = logits(base, family, samples)
    adapted = peft.PeftModel.from_pretrained(base, student / "adapter").eval()
    assert torch.allclose(logits(adapted, family, samples), merged, atol=1e-4)
    assert (merged - before).abs().max() > 1e-4, "nothing was learnt"
    card = (student / "README.md").read_text()
    assert type(base).__name__ == auto_class(family).from_pretrained(student).__class__.__name__
    assert auto_class(family).__name__ in card


@pytest.mark.parametrize(
    ("family", "kind"),
    [("bert", "lora"), ("t5", "all weights"), ("gemma2", "all weights"), ("mixtral", "lora")],
)
def test_a_stopped_run_goes_on_bit_for_bit(tune_run, write_config, tmp_path, family, kind):
    changes = {
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 0.01},
        "gradient_accumulation_steps": 1,
    }
    if kind == "lora":
        changes |= {
            "model._component_": "hf_models.lora_auto_model",
            "model.lora_dropout": 0.1,
        }
    path = write_config(family, changes)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for directory, epochs in ((whole, 2), (parts, 1), (parts, 2)):
        code, _, err = tune_run(
            "kd_single_device",
            path,
            f"output_dir={directory}",
            f"epochs={epochs}",
            f"resume_from_checkpoint={epochs == 2 and directory == parts}",
        )
        assert code == 0, err
    ours, theirs = (load_file(d / "epoch_1" / "model.safetensors") for d in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_decoder_and_the_same_directory_through_transformers_give_the_same_losses(
    write_config,
):
    values = []
    for component in ("hf_models.auto_model", "hf_models.decoder"):
        path = write_config("qwen3", {"teacher_model._component_": component})
        run = prepare(OmegaConf.load(path), OneDevice("cpu"))
        values.append(load(run).step(next(run.source.steps(0)), 1))
    auto, decoder = values
    assert decoder.keys() == auto.keys()
    for name, value in decoder.items():
        assert auto[name] == pytest.approx(value, rel=1e-5), name
