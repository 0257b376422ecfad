"""Published models on the meta device: sizes that no test could hold, parameter by parameter.

``tests/data/published_models.json`` has the fields of each model's config.json as it stands at
``https://huggingface.co/<name>/blob/main/config.json``, and its number of parameters, a tied head
counted once. That number is the total of the page's safetensors files, less the copy of the tied
head that three of them hold (Qwen3-0.6B 751,632,384, Qwen3-1.7B 2,031,739,904 and Qwen1.5-0.5B
619,570,176 with it). keras-hub gives the same for Qwen3 and for Qwen2.5-0.5B, -3B, -32B and -72B:
https://github.com/keras-team/keras-hub/blob/master/keras_hub/src/models/qwen3/qwen3_presets.py and
https://github.com/keras-team/keras-hub/blob/master/keras_hub/src/models/qwen/qwen_presets.py.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_models import decoder
from hf_models.torchtune_decoder.names import hf_name, tune_name

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "published_models.json").read_text())


@pytest.mark.parametrize("published", PUBLISHED, ids=[model["name"] for model in PUBLISHED])
def test_parameters_are_those_of_transformers(published, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(published["config"]))
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
        ours = decoder(tmp_path)

    expected = {name: parameter.shape for name, parameter in theirs.named_parameters()}
    assert {hf_name(name): p.shape for name, p in ours.named_parameters()} == expected
    assert {tune_name(name) for name in expected} == ours.state_dict().keys()
    assert sum(p.numel() for p in ours.parameters()) == published["parameters"]
    assert all(p.is_meta for p in ours.parameters())
    attention = ours.layers[0].attn
    assert ours.max_seq_len == published["config"]["max_position_embeddings"]
    assert attention.num_heads == published["config"]["num_attention_heads"]
    assert attention.num_kv_heads == published["config"]["num_key_value_heads"]
