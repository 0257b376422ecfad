"""A prompt that only the teacher reads, before each text."""

import pytest
import torch
from kept import changed, logged
from omegaconf import OmegaConf
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from hf_models import tokenizer
from kd_data import collate
from kd_data.teacher_prompt import TeacherPrompt, teacher_prompt
from kd_training import OneDevice, prepare, run
from kd_training.caching.run import cache_teacher
from kd_training.train import load

IGNORED = -100
SYSTEM = "Numbers are objects."
EXAMPLES = [{"role": "user", "content": "A loop?"}, {"role": "assistant", "content": "It ends."}]


def test_the_teacher_s_positions_are_moved_by_the_prompt():
    prompt = TeacherPrompt([7, 8, 9], None, IGNORED)
    sample = {"tokens": [1, 2, 3], "labels": [1, 2, 3]}
    batch = prompt.batches(lambda samples: collate(samples, pad_id=0))([sample])
    assert batch.inputs["tokens"].tolist() == [[1, 2, 3]]
    assert batch.teacher.inputs["tokens"].tolist() == [[7, 8, 9, 1, 2, 3]]
    assert batch.teacher.index.tolist() == [[3, 4, 5]]
    assert batch.teacher.labels.tolist() == [[IGNORED] * 3 + [2, 3, IGNORED]]
    assert batch.scopes["matched"]["logits"].all()


def test_a_text_begins_once():
    prompt = TeacherPrompt([7, 8], 1, IGNORED)
    sample = {"tokens": [1, 5, 6], "labels": [1, 5, 6]}
    both = prompt.beside(sample)
    assert both["teacher_tokens"] == [1, 7, 8, 5, 6]
    assert both["teacher_index"] == [2, 3, 4]
    assert both["teacher_labels"] == [IGNORED] * 3 + [5, 6]


@pytest.mark.parametrize("bos_id", [None, 1])
@pytest.mark.parametrize("text", [[], [1], [1, 5], [5, 6]])
def test_texts_of_any_length_lists_or_tensors(bos_id, text):
    prompt = TeacherPrompt([7, 8], bos_id, IGNORED)
    batches = [
        prompt.batches(lambda samples: collate(samples, pad_id=0))(
            [{"tokens": kind(text), "labels": kind(text)}, {"tokens": [5, 6], "labels": [5, 6]}]
        )
        for kind in (list, lambda one: torch.tensor(one, dtype=torch.long))
    ]
    for batch in batches:
        assert batch.teacher.inputs["lengths"].tolist() == [len(text) + 2, 4]
        targets = [one[one != IGNORED].tolist() for one in (batch.teacher.labels, batch.labels)]
        assert targets == [[*text[1:], 6]] * 2
    assert torch.equal(batches[0].sample_keys, batches[1].sample_keys)


def prompted(tiny_run, root, **more):
    return changed(tiny_run.config(root), {"teacher_prompt": EXAMPLES, "shuffle": False} | more)


def test_a_step_equals_transformers_on_prompt_and_text(tiny_run, tmp_path):
    """Float64: the divergence, and a matched layer, at the student's positions."""
    cfg = prompted(tiny_run, tmp_path, layer_mapping=[[0, 2]])
    prepared = prepare(cfg, OneDevice("cpu"))
    loaded = load(prepared)
    batches = next(prepared.source.steps(0))
    values = loaded.step(batches, 1)
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(tiny_run.directories[who]).double().eval()
        for who in ("student", "teacher")
    )
    before = teacher_prompt(EXAMPLES, tokenizer(tiny_run.directories["teacher"]), IGNORED).ids
    kd = ir = count = 0.0
    for batch in batches:
        for tokens, length in zip(batch.inputs["tokens"], batch.inputs["lengths"], strict=True):
            text = tokens[:length]
            longer = torch.cat([torch.tensor(before), text])[None]
            with torch.no_grad():
                read = teacher(longer, output_hidden_states=True)
                own = student(text[None], output_hidden_states=True)
            here = slice(len(before), -1)
            log_p = read.logits[0, here].log_softmax(-1)
            log_q = own.logits[0, :-1].log_softmax(-1)
            kd += F.kl_div(log_q, log_p, reduction="sum", log_target=True).item()
            layers = own.hidden_states[1][0, :-1], read.hidden_states[3][0, here]
            ir += (1 - F.cosine_similarity(*layers, dim=-1)).sum().item()
            count += len(text) - 1
    assert values["kd"] == pytest.approx(kd / count, rel=1e-5)
    assert values["ir"] == pytest.approx(ir / count, rel=1e-5)


def test_kept_answers_are_those_of_a_live_teacher(tiny_run, tmp_path):
    live = prompted(tiny_run, tmp_path, output_dir=str(tmp_path / "live"))
    cache = str(tmp_path / "cache")
    cache_teacher(OmegaConf.merge(live, {"cache_dir": cache}), OneDevice("cpu"))
    run(live, OneDevice("cpu"))
    kept = changed(live, {"teacher_cache": cache, "output_dir": str(tmp_path / "kept")})
    run(kept, OneDevice("cpu"))
    assert logged(tmp_path / "kept") == logged(tmp_path / "live")
    other = changed(kept, {"teacher_prompt": SYSTEM, "output_dir": str(tmp_path / "other")})
    with pytest.raises(ValueError, match="the teacher has not read"):
        run(other, OneDevice("cpu"))


def test_a_student_learns_what_its_own_base_says_with_the_prompt(tiny_run, tmp_path):
    cfg = prompted(
        tiny_run,
        tmp_path,
        teacher_model="base",
        teacher_checkpointer=None,
        layer_mapping="none",
        epochs=12,
        kd_ratio=1.0,
        loss_scaling={"enabled": False},
    )
    run(cfg, OneDevice("cpu"))
    losses = [one["kd"] for one in logged(tmp_path / "out") if "kd" in one]
    assert 0 < losses[-1] < 0.7 * losses[0]


ULD = {"kd_loss": {"_component_": "kd_losses.ULDLoss"}, "layer_mapping": "none"}
REFUSED = {
    "packed": ({"dataset.packed": True}, "dataset.packed must be false with teacher_prompt"),
    "long": ({"tokenizer.max_seq_len": 120}, "more than the 128 positions that teacher_model"),
    "message": ({"teacher_prompt": [{"role": "user"}]}, "config: teacher_prompt: its message 0"),
    "neither": ({"teacher_prompt": {"role": "user"}}, "it must be a text or a list"),
    "tokenizer": ({"teacher_tokenizer": "${tokenizer}"} | ULD, "leave out one of them"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit(tiny_run, tmp_path, name):
    changes, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        prepare(prompted(tiny_run, tmp_path, **changes), OneDevice("cpu"))


def test_own_text_behind_a_prompt(tiny_run, tmp_path):
    cfg = prompted(tiny_run, tmp_path, on_policy={"max_new_tokens": 4, "prompt_tokens": 3})
    run(cfg, OneDevice("cpu"))
    assert all(one["kd"] > 0 for one in logged(tmp_path / "out"))
