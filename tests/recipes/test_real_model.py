"""The pretrained embedded model through the whole pipeline, a few short steps long."""

import json

import torch
from omegaconf import OmegaConf
from torchtune.training import MODEL_KEY
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_models import HFCheckpointer, decoder, load_weights


def test_decoder_gives_the_logits_of_transformers(embedded_model_dir):
    with torch.device("meta"):
        ours = decoder(embedded_model_dir, max_seq_len=64)
    weights = HFCheckpointer(embedded_model_dir).load_checkpoint()[MODEL_KEY]
    load_weights(ours, weights, "cpu", torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(embedded_model_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_dir)
    tokens = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = ours(tokens)
        torch.testing.assert_close(logits, theirs(tokens).logits, rtol=0, atol=1e-4)
    assert tokenizer.decode(logits[0, -1].argmax()).strip() == "Paris"


def test_a_shallow_student_learns_from_it(embedded_model_dir, tune_run, config_file, tmp_path):
    teacher, student = str(embedded_model_dir), str(tmp_path / "student")
    init = tmp_path / "init.yaml"
    init.write_text(f"teacher_dir: {teacher}\noutput_dir: {student}\nnum_layers: 3\n")
    code, _, err = tune_run("kd_init_student", init)
    assert code == 0, err

    cfg = OmegaConf.load(config_file)
    for key in ("model", "checkpointer"):
        cfg[key].checkpoint_dir = student
    for key in ("teacher_model", "teacher_checkpointer", "tokenizer"):
        cfg[key].checkpoint_dir = teacher
    cfg.tokenizer.max_seq_len = 24
    cfg.update(epochs=3, gradient_accumulation_steps=1)
    OmegaConf.save(cfg, config_file)
    code, _, err = tune_run("kd_single_device", config_file)
    assert code == 0, err

    lines = (tmp_path / "out" / "logs" / "metrics.jsonl").read_text().splitlines()
    totals = [json.loads(line)["total"] for line in lines]
    assert len(totals) == 12
    assert sum(totals[-4:]) < 0.8 * sum(totals[:4])
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "epoch_2")
