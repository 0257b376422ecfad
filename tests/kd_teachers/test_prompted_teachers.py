"""Teachers of every kind behind a prompt: float64, their own copies, what was kept of them."""

import pytest
import tiny
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "Numbers are objects."
BASE = {"teacher_model": "base", "teacher_checkpointer": None}
PAIRS = {"layer_mapping": [[0, 0], [1, 1]], "epochs": 2}
EVERYWHERE = {"token_scope": {"kd": "all", "ir": "all"}}
INT8 = {"teacher_quantization": {"_component_": "torchao.quantization.Int8WeightOnlyConfig"}}
TOP_K = {"cache": {"logits": "top_k", "k": 320}}  # every id


@pytest.fixture
def of_student(tiny_run):
    """The keys of a teacher that is a copy of the student."""
    directory = str(tiny_run.directories["student"])
    names = ("teacher_model", "teacher_checkpointer")
    return {f"{name}.checkpoint_dir": directory for name in names}


@pytest.mark.parametrize("case", [{}, EVERYWHERE, {"model.lora_dropout": 0.3}])
def test_the_students_base_teaches_like_a_copy_of_it(case, teach, of_student):
    prompted = PAIRS | case | {"teacher_prompt": PROMPT}
    base = teach(prompted | BASE, "base")
    assert base == teach(prompted | of_student, "copy")
    assert base[0]["kd"] > 1e-3, "LoRA starts at nothing, so this is what the prompt tells"
    assert base[0]["ir"] > 1e-3


KEPT = {
    "its base": PAIRS | BASE,
    "a quantised one": INT8,
    "every position": EVERYWHERE | {"prompt_kd_loss": {"_component_": "kd_losses.ReverseKLLoss"}},
    "by length, read ahead": {"group_by_length": True, "num_workers": 1, "batch_size": 3,
                              "gradient_accumulation_steps": 1},
    "held-out texts": {"dataset_val": "${dataset}", "batch_size_val": 3},
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_what_was_kept_is_what_a_live_teacher_says(case, teach, keep):
    prompted = KEPT[case] | {"teacher_prompt": PROMPT}
    cache = {"teacher_cache": str(keep(prompted))}
    assert teach(prompted | cache, "kept") == teach(prompted, "live")


def test_its_most_probable_tokens_are_kept_too(teach, keep):
    prompted = {"teacher_prompt": PROMPT, "layer_mapping": "none"}
    cache = {"teacher_cache": str(keep(prompted | TOP_K))}
    kept, live = teach(prompted | cache, "kept")[0], teach(prompted, "live")[0]
    assert kept["kd"] == pytest.approx(live["kd"], rel=1e-5)


def log_p(directory, before, text):
    """log-softmax of transformers' own logits behind ``before``, float64: a row for each target."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id][:63]
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *ids]])).logits[0, len(before) : -1]
    return logits.log_softmax(-1)


def test_several_are_averaged_behind_the_prompt(tiny_run, teach, tmp_path):
    other = tiny.save_model(tmp_path / "other", num_hidden_layers=3, seed=5)
    directories = {"a": tiny_run.directories["teacher"], "b": other}
    nodes = {
        name: {
            "model": {"_component_": "hf_models.decoder", "checkpoint_dir": str(directory)},
            "checkpointer": {
                "_component_": "hf_models.HFCheckpointer", "checkpoint_dir": str(directory)
            },
        }
        for name, directory in directories.items()
    }  # fmt: skip
    whole = {"batch_size": 8, "gradient_accumulation_steps": 1, "layer_mapping": "none"}
    alone = {"teacher_model": None, "teacher_checkpointer": None, "teachers": nodes}
    logged = teach(whole | alone | {"teacher_prompt": PROMPT})[0]
    template = AutoTokenizer.from_pretrained(directories["a"]).apply_chat_template
    before = template([{"role": "system", "content": PROMPT}], return_dict=True)["input_ids"]
    total, count = 0.0, 0
    for text in tiny.SENTENCES:
        log_q = log_p(tiny_run.directories["student"], [], text)
        each = [log_p(directory, before, text).exp() for directory in directories.values()]
        mean = (sum(each) / len(each)).log()
        total += F.kl_div(log_q, mean, reduction="sum", log_target=True).item()
        count += len(log_q)
    assert logged["kd"] == pytest.approx(total / count, rel=1e-5)


def test_without_a_prompt_nothing_changes(teach):
    assert teach({"teacher_prompt": None}, "none") == teach({}, "plain")


def test_a_longer_prompt_is_another_text(teach, keep):
    cache = {"teacher_cache": str(keep({"teacher_prompt": PROMPT}))}
    with pytest.raises(ValueError, match="dataset: sample 0: the teacher has not read"):
        teach(cache | {"teacher_prompt": PROMPT + "!"})
    with pytest.raises(ValueError, match="dataset: sample 0: the teacher has not read"):
        teach(OmegaConf.create(cache))
