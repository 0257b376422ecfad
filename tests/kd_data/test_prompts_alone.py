"""Files of prompts without completions."""

import json

import tiny
from omegaconf import OmegaConf

from hf_models import tokenizer
from kd_data import collate, prompt_completion_dataset
from kd_data.tasks.prompts import prompts_of
from kd_training import OneDevice, run


def prompts_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in tiny.SENTENCES))
    return path


def test_the_whole_text_is_the_prompt(tmp_path):
    tiny.save_tokenizer(tmp_path)
    own = tokenizer(tmp_path)
    rows = prompt_completion_dataset(own, prompts_file(tmp_path), completion_column=None)
    batch = collate([rows[0], rows[1]], pad_id=own.pad_id)
    for prompt, text in zip(prompts_of(batch), tiny.SENTENCES, strict=False):
        assert own.decode(prompt.tokens.tolist()) == text
        assert len(prompt.given) == 0


def test_a_run_on_prompts_alone(tiny_run, tmp_path):
    cfg = OmegaConf.create(tiny_run.config(tmp_path))
    cfg.dataset = {
        "_component_": "kd_data.prompt_completion_dataset",
        "data_files": str(prompts_file(tmp_path)),
        "completion_column": None,
    }
    cfg.on_policy = {"max_new_tokens": 4}
    run(cfg, OneDevice("cpu"))
    lines = (tmp_path / "out" / "logs" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["kd"] > 0 for line in lines)
