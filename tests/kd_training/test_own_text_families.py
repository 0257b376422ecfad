"""Models of transformers, and several teachers, with text that the student writes itself."""

import pytest
import torch
from families import family_config, save_family
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

GREEDY = {"max_new_tokens": 7, "temperature": 0.0, "val_prompts": 0}
AUTO = {"gpt2": AutoModelForCausalLM, "t5": AutoModelForSeq2SeqLM, "bart": AutoModelForSeq2SeqLM}


def first_step(loaded):
    source = loaded.run.source
    return source._completed(next(source.given.steps(0)), 0)


@pytest.mark.parametrize("family", AUTO)
def test_what_is_written_is_what_transformers_generates(load_run, tmp_path, family):
    for who, student in (("teacher", False), ("student", True)):
        save_family(tmp_path / who, family, student=student)
    config = family_config(tmp_path, family, tmp_path / "teacher", tmp_path / "student")
    loaded = load_run(OmegaConf.create(config | {"on_policy": GREEDY}))
    batches, written = first_step(loaded)
    model = AUTO[family].from_pretrained(tmp_path / "student").eval()
    ends = sorted(loaded.run.source._completed.writer.stop_ids)
    # The config's own habits, such as a forced end, would be another text.
    model.generation_config = GenerationConfig()
    plain = GenerationConfig(
        max_new_tokens=7,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
        decoder_start_token_id=loaded.run.student.facts.decoder_start_id,
    )
    for one in written:
        found = model.generate(one.prompt.tokens[None], generation_config=plain)[0]
        start = len(one.prompt.tokens) if AUTO[family] is AutoModelForCausalLM else 1
        assert one.tokens.tolist() == found[start:].tolist()
    values = loaded.step(batches, 1)
    assert values["kd"] > 0
    assert values["num_tokens"] == sum(len(one.tokens) for one in written)


def test_a_decoder_of_torchtune_writes_the_same(make_run):
    loaded = make_run({"on_policy": GREEDY | {"prompt_tokens": 5}})
    _, written = first_step(loaded)
    model = AutoModelForCausalLM.from_pretrained(loaded.directories["student"]).eval()
    for one in written:
        found = model.generate(one.prompt.tokens[None], max_new_tokens=7, do_sample=False)[0]
        assert one.tokens.tolist() == found[len(one.prompt.tokens) :].tolist()


def test_the_student_s_own_base_teaches_it_nothing_at_first(make_run):
    own = {"on_policy": GREEDY | {"temperature": 1.0}, "teacher_model": "base"}
    loaded = make_run(own | {"teacher_checkpointer": None, "layer_mapping": "none"})
    batches, _ = first_step(loaded)
    assert loaded.step(batches, 1)["kd"] == pytest.approx(0, abs=1e-6), "LoRA starts at nothing"
    batches, _ = first_step(loaded)
    assert loaded.step(batches, 2)["num_tokens"] > 0


def test_several_teachers_are_averaged_on_own_text(make_run, tiny_run):
    named = {
        who: {
            "model": {"_component_": "hf_models.decoder", "checkpoint_dir": str(directory)},
            "checkpointer": {
                "_component_": "hf_models.HFCheckpointer",
                "checkpoint_dir": str(directory),
            },
        }
        for who, directory in tiny_run.directories.items()
    }
    several = {
        "teachers": named,
        "teacher_model": None,
        "teacher_checkpointer": None,
        "layer_mapping": "none",
        "on_policy": GREEDY,
    }
    loaded = make_run(several)
    batches, _ = first_step(loaded)
    values = loaded.step(batches, 1)
    assert {"kd/teacher", "kd/student"} <= values.keys()
    assert values["kd/student"] == pytest.approx(0, abs=1e-6), "it is the student's own base"
    assert torch.tensor(values["kd"]) > 0
