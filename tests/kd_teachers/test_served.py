"""A teacher behind a server, with the server's faults."""

import json
import threading

import pytest
import torch
from kept import changed, logged
from resuming import check_same, distil
from scoring_server import NAME, Scorer, serving
from transformers import AutoModelForCausalLM

from kd_training import OneDevice, prepare

VOCABULARY = 320
QUICK = {"attempts": 3, "wait_s": 0}


@pytest.fixture
def scorer(tiny_run):
    return Scorer(tiny_run.directories["teacher"])


@pytest.fixture
def url(scorer):
    with serving(scorer) as address:
        yield address


@pytest.fixture
def served(tiny_run, tmp_path, url):
    """A config whose teacher is behind the server."""

    def make(where="out", top_k=VOCABULARY, server=None, **changes):
        settings = {"url": url, "top_k": top_k} | QUICK | (server or {})
        own = {
            "output_dir": str(tmp_path / where),
            "layer_mapping": "none",
            "teacher_model": None,
            "teacher_checkpointer": None,
            "teacher_server": settings,
        }
        return changed(tiny_run.config(tmp_path), own | changes)

    return make


def live(tiny_run, tmp_path, **changes):
    own = {"output_dir": str(tmp_path / "live"), "layer_mapping": "none"}
    return changed(tiny_run.config(tmp_path), own | changes)


def alike(ours, theirs, tolerance):
    for one, other in zip(ours, theirs, strict=True):
        for name in ("kd", "ce", "grad_norm"):
            if name in other:
                assert one[name] == pytest.approx(other[name], rel=tolerance, abs=1e-7), name


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("loss", ["ForwardKLLoss", "ReverseKLLoss"])
def test_all_ids_are_the_whole_distribution(tiny_run, tmp_path, scorer, served, loss, echo):
    scorer.echo = echo
    loss = {"kd_loss": {"_component_": f"kd_losses.{loss}"}}
    assert distil(served(**loss)) == distil(live(tiny_run, tmp_path, **loss)) == 0
    alike(logged(tmp_path / "out"), logged(tmp_path / "live"), 1e-4)
    assert all(body["model"] == NAME for body in scorer.asked)


CASES = {
    "packed": {"dataset.packed": True, "dataset.split_across_pack": False, "batch_size": 1},
    "validation": {"dataset_val": "${dataset}", "run_val_every_n_steps": 1},
    "workers": {"num_workers": 1},
    "prompt": {"teacher_prompt": "Numbers are objects."},
    "own text": {"on_policy": {"max_new_tokens": 4, "prompt_tokens": 3}},
}


@pytest.mark.parametrize("case", CASES)
def test_texts_of_any_shape_are_asked_for(tiny_run, tmp_path, served, case):
    assert distil(served(**CASES[case])) == distil(live(tiny_run, tmp_path, **CASES[case])) == 0
    alike(logged(tmp_path / "out"), logged(tmp_path / "live"), 1e-4)


def test_a_few_ids_and_the_mass_of_all_others(tiny_run, tmp_path, served):
    """KL over k ids and one for the rest, by hand in float64."""
    k = 5
    cfg = served(top_k=k, shuffle=False)
    batches = next(prepare(cfg, OneDevice("cpu")).source.steps(0))
    assert distil(cfg) == 0
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(tiny_run.directories[who]).double().eval()
        for who in ("student", "teacher")
    )
    total, count = 0.0, 0
    for batch in batches:
        for tokens, length in zip(batch.inputs["tokens"], batch.inputs["lengths"], strict=True):
            text = tokens[:length][None]
            with torch.no_grad():
                p, q = (m(text).logits[0, :-1].softmax(-1) for m in (teacher, student))
            ids = p.topk(k).indices
            both = []
            for one in (p, q):
                own = one.gather(-1, ids)
                both.append(torch.cat([own, 1 - own.sum(-1, keepdim=True)], dim=-1))
            total += (both[0] * (both[0] / both[1]).log()).sum().item()
            count += len(both[0])
    assert logged(tmp_path / "out")[0]["kd"] == pytest.approx(total / count, rel=1e-5)


FAULTS = {"500": 500, "429": 429, "dropped": "drop"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_waited_for(tmp_path, scorer, served, fault, capsys):
    assert distil(served(where="plain")) == 0
    first = len(scorer.asked)
    scorer.faults = {first + 1: FAULTS[fault], first + 2: FAULTS[fault]}
    assert distil(served()) == 0
    check_same(tmp_path / "out", tmp_path / "plain")
    assert "asks again" in capsys.readouterr().out


def test_an_answer_that_takes_too_long_is_asked_for_again(tmp_path, scorer, served):
    assert distil(served(where="plain")) == 0
    late = threading.Event()

    def slow(answer):
        late.wait(60)  # it ends when the test does, be the machine fast or slow
        return answer

    scorer.faults = {len(scorer.asked) + 1: slow}
    try:
        assert distil(served(server={"timeout_s": 2.0, "attempts": 30})) == 0
    finally:
        late.set()
    check_same(tmp_path / "out", tmp_path / "plain")


def test_a_server_that_is_gone_costs_nothing_that_was_done(tmp_path, scorer, served):
    assert distil(served(where="plain", epochs=2)) == 0
    asked = len(scorer.asked)
    # After the look at the server and the first batches: in the middle of the run.
    scorer.faults = dict.fromkeys(range(asked + asked // 2, asked + 1000), 503)
    with pytest.raises(OSError, match=r"not answered in 3 attempts .HTTP 503.*saved .*step_"):
        distil(served(epochs=2))
    scorer.faults = {}
    assert distil(served(epochs=2, resume_from_checkpoint=True)) == 0
    check_same(tmp_path / "out", tmp_path / "plain")


def unknown_id(answer):
    for choice in answer["choices"]:
        for row in choice["prompt_logprobs"][1:]:
            row[str(VOCABULARY + 5)] = {"logprob": -9.0}
    return answer


def by_text(answer):
    for choice in answer["choices"]:
        choice["prompt_logprobs"][1:] = [{" the": -0.1} for _ in choice["prompt_logprobs"][1:]]
    return answer


def other_text(answer):
    for choice in answer["choices"]:
        rows = choice["prompt_logprobs"]
        rows[1:] = [{str(i): {"logprob": -1.0} for i in range(300, 310)} for _ in rows[1:]]
    return answer


WRONG = {
    "vocabulary": (unknown_id, "none of the student's 320"),
    "text": (other_text, "the answer is about other tokens"),
    "names": (by_text, "names a token ' the' by its text"),
    "number": (lambda answer: {"choices": answer["choices"] * 2}, "answers to 1 texts"),
    "nothing": (
        lambda answer: {"choices": [{"index": 0} for _ in answer["choices"]]},
        "must know prompt_logprobs or echo",
    ),
    "refused": (400, "refuses with HTTP 400.*it is told to fail"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_no_answers(tmp_path, scorer, served, name):
    scorer.always, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        prepare(served(top_k=5), OneDevice("cpu"))
    assert len(scorer.asked) == 1, "what is wrong is not asked again"
    assert not (tmp_path / "out").exists()


def test_too_few_log_probabilities(scorer, served):
    scorer.most = 4
    with pytest.raises(ValueError, match="instead of 20; start vLLM with --max-logprobs 20"):
        prepare(served(top_k=20), OneDevice("cpu"))


REFUSED = {
    "model": ({"teacher_server.model": "other"}, f"serves {NAME}; name one of these"),
    "layers": ({"layer_mapping": "forward"}, "ir needs the outputs of the teacher's layers"),
    "another": ({"teacher_cache": "out/cache"}, "teacher_cache and teacher_server"),
    "temperature": (
        {"kd_loss": {"_component_": "kd_losses.ForwardKLLoss", "temperature": 2.0}},
        "more than teacher_server gives: .* at temperature 2",
    ),
    "whole": ({"kd_loss": {"_component_": "kd_losses.DKDLoss"}}, "kd needs"),
    "key": ({"teacher_server.topk": 3}, "teacher_server.topk is no key.*did you mean top_k"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit(served, name):
    changes, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        prepare(served(top_k=8, **changes), OneDevice("cpu"))


def test_a_server_that_is_not_there(served, url):
    with pytest.raises(OSError, match="has not answered in 3 attempts"):
        prepare(served(server={"url": "http://127.0.0.1:9/v1"}), OneDevice("cpu"))


def test_a_key_is_sent(monkeypatch, scorer, served):
    monkeypatch.setenv("A_KEY", "secret")
    prepared = prepare(served(server={"api_key_env": "A_KEY"}), OneDevice("cpu"))
    assert prepared.teacher._client._headers == {"Authorization": "Bearer secret"}
    assert "secret" not in json.dumps(scorer.asked)
