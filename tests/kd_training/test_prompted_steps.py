"""A prompt that only the teacher reads, against loops on transformers and on several ranks."""

import families
import pytest
import torch
from cache_ranks import train_as_rank
from kept import changed, logged
from omegaconf import OmegaConf
from ranks import on_ranks
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd_teachers import live_models
from kd_training import OneDevice, prepare, run
from kd_training.preflight.weights import check_weights

EXAMPLES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "A loop?"},
    {"role": "assistant", "content": "It ends."},
]
LEARNING_RATE = 0.1


def kl(log_p, log_q):
    """[N, V] each → [N]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def float64(directory):
    return AutoModelForCausalLM.from_pretrained(directory).double().eval()


def prompt_ids(directory):
    template = AutoTokenizer.from_pretrained(directory).apply_chat_template
    return template(EXAMPLES, return_dict=True, return_tensors="pt")["input_ids"][0]


def texts_of(batch):
    """Each row without its padding, and its targets."""
    lengths = batch.inputs["lengths"]
    for row, labels, length in zip(batch.inputs["tokens"], batch.labels, lengths, strict=True):
        yield row[:length], labels[:length]


def test_a_run_of_self_distillation_equals_a_loop_text_by_text(load_run, tiny_run, tmp_path):
    """The student as it was teaches the student: float64, no padding, plain gradient descent."""
    student = str(tiny_run.directories["student"])
    node = {"_component_": "hf_models.decoder", "checkpoint_dir": student}
    own = {
        "model": node,
        "teacher_model": node,
        "teacher_checkpointer.checkpoint_dir": student,
        "teacher_prompt": EXAMPLES,
        "layer_mapping": "none",
        "loss_scaling.enabled": False,
        "kd_ratio": 1.0,
        "epochs": 2,
        "optimizer": {"_component_": "torch.optim.SGD", "lr": LEARNING_RATE},
    }
    loaded = load_run(changed(tiny_run.config(tmp_path), own))
    teacher, learner, before = float64(student), float64(student), prompt_ids(student)
    optimizer = torch.optim.SGD(learner.parameters(), lr=LEARNING_RATE)
    losses = []
    for epoch in range(2):
        for batches in loaded.run.source.steps(epoch):
            actual = loaded.step(batches, len(losses) + 1)["kd"]
            texts = [text for batch in batches for text, _ in texts_of(batch)]
            sums = []
            for text in texts:
                with torch.no_grad():
                    log_p = teacher(torch.cat([before, text])[None]).logits[0, len(before) : -1]
                log_q = learner(text[None]).logits[0, :-1].log_softmax(-1)
                sums.append(kl(log_p.log_softmax(-1), log_q).sum())
            loss = sum(sums) / sum(len(text) - 1 for text in texts)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            assert actual == pytest.approx(losses[-1], rel=1e-5)
    assert losses[-1] < losses[0]


REVERSE = {"prompt_kd_loss": {"_component_": "kd_losses.ReverseKLLoss"}}


@pytest.mark.parametrize("scope", ["labels", "all"])
def test_every_scope_counts_the_positions_of_the_text(make_run, scope):
    loaded = make_run(
        {
            "teacher_prompt": EXAMPLES,
            "layer_mapping": [[0, 2]],
            "token_scope": {"kd": scope, "ir": scope},
        }
        | REVERSE
    )
    batch = loaded.batch([0, 1, 2], unlabelled=3)
    teacher, student = (float64(loaded.directories[who]) for who in ("teacher", "student"))
    before = prompt_ids(loaded.directories["teacher"])
    kd = prompt_kd = ir = 0.0
    for text, labels in texts_of(batch):
        with torch.no_grad():
            read = teacher(torch.cat([before, text])[None], output_hidden_states=True)
            own = student(text[None], output_hidden_states=True)
        log_p = read.logits[0, len(before) :].log_softmax(-1)
        log_q = own.logits[0].log_softmax(-1)
        layers = own.hidden_states[1][0], read.hidden_states[3][0, len(before) :]
        here = labels != -100 if scope == "labels" else torch.ones_like(labels, dtype=torch.bool)
        kd += kl(log_p, log_q)[here].sum().item()
        prompt_kd += kl(log_q, log_p)[labels == -100].sum().item()
        ir += (1 - F.cosine_similarity(*layers, dim=-1))[here].sum().item()
    parts = loaded.parts(batch)
    assert parts["kd"] == pytest.approx(kd, rel=1e-5)
    assert parts["prompt_kd"] == pytest.approx(prompt_kd, rel=1e-5)
    assert parts["ir"] == pytest.approx(ir, rel=1e-5)


PLAIN = "the loop runs until its condition is false ."


@pytest.mark.parametrize("family", ["gpt2", "bloom", "gemma2", "mistral"])
def test_families_read_the_prompt_behind_the_beginning_of_a_text(
    load_run, directories, tmp_path, family
):
    """Positions that are learned, slopes, windows that the prompt fills; ``<s>`` once."""
    teacher, student = directories(family)
    config = families.family_config(tmp_path, family, teacher, student)
    loaded = load_run(OmegaConf.create(config | {"teacher_prompt": PLAIN, "layer_mapping": "none"}))
    batch = loaded.run.source.first_batch()
    before = AutoTokenizer.from_pretrained(teacher)(PLAIN, add_special_tokens=False).input_ids
    models = [float64(directory) for directory in (teacher, student)]
    total = 0.0
    for text, labels in texts_of(batch):
        assert text[0] == families.START
        longer = torch.cat([text[:1], torch.tensor(before), text[1:]])
        with torch.no_grad():
            log_p, log_q = (
                model(tokens[None]).logits[0].log_softmax(-1)
                for model, tokens in zip(models, (longer, text), strict=True)
            )
        total += kl(log_p[len(before) :], log_q)[labels != -100].sum().item()
    assert loaded.parts(batch)["kd"] == pytest.approx(total, rel=1e-4)


def test_two_ranks_are_one_device(tiny_run, tmp_path):
    def config(where, batch_size):
        cfg = changed(
            tiny_run.config(tmp_path),
            {
                "output_dir": str(tmp_path / where),
                "teacher_prompt": EXAMPLES,
                "batch_size": batch_size,
                "gradient_accumulation_steps": 1,
                "dataset_val": "${dataset}",
                "batch_size_val": 3,
            },
        )
        return OmegaConf.to_container(cfg, resolve=True)

    run(OmegaConf.create(config("one", 4)), OneDevice("cpu"))
    on_ranks(2, str(tmp_path / "meeting"), train_as_rank, config("two", 2))
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert any("val/total" in record for record in one)
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_models_that_are_not_causal_are_refused(directories, tmp_path, family):
    config = families.family_config(tmp_path, family, *directories(family))
    with pytest.raises(ValueError, match=r"teacher_prompt is for causal .* is none"):
        prepare(OmegaConf.create(config | {"teacher_prompt": PLAIN}), OneDevice("cpu"))


def test_a_teacher_that_the_prompt_misleads_is_told(make_run):
    """Of the same targets, so that its cross-entropy is held against the student's."""
    loaded = make_run({"teacher_prompt": EXAMPLES, "layer_mapping": "none"})
    models, batch = loaded.run, loaded.run.source.first_batch()
    teacher, student = (float64(loaded.directories[who]) for who in ("teacher", "student"))
    before = prompt_ids(loaded.directories["teacher"])
    sums, count = [0.0, 0.0], 0
    for text, _ in texts_of(batch):
        longer = torch.cat([before, text])
        with torch.no_grad():
            for i, (model, tokens) in enumerate([(teacher, longer), (student, text)]):
                logits = model(tokens[None]).logits[0, -len(text) : -1]
                sums[i] += F.cross_entropy(logits, text[1:], reduction="sum").item()
        count += len(text) - 1
    theirs, own = (f"{one / count:.2f}" for one in sums)
    assert float(theirs) > float(own)
    found = check_weights(models.student, live_models(models.teacher), batch, -100)
    assert any(f"first batch, {theirs}, is worse than the student's, {own}" in one for one in found)
