"""Whole steps of every family against a loop on transformers: one sample at a time, no padding.

The loop knows nothing of ours: it takes transformers' own logits, and the outputs of blocks at
places that are written down by hand.
"""

import json

import families
import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, auto_class, family_config, save_family
from omegaconf import OmegaConf

from hf_models import init_student

WEIGHTS = {"ce": 1.0, "kd": 1.0, "ir": 3.0}
SAMPLES = 4  # of a step: two micro-batches of two


@pytest.fixture
def family_run(directories, tmp_path, load_run):
    """A loaded run of a family, with overrides by dotted key."""

    def make(family, overrides=None):
        cfg = OmegaConf.create(family_config(tmp_path, family, *directories(family)))
        for key, value in (overrides or {}).items():
            OmegaConf.update(cfg, key, value, force_add=True, merge=False)
        return load_run(cfg)

    return make


class Oracle:
    """A model of transformers that tells its logits, its blocks' outputs, and nothing else."""

    def __init__(self, family, directory):
        self.family = FAMILIES[family]
        self.model = auto_class(family).from_pretrained(directory)
        self.outputs = {}
        for stack, path in self.family.blocks.items():
            for number, block in enumerate(self.model.get_submodule(path)):
                block.register_forward_hook(self._keep((stack, number)))

    def _keep(self, key):
        def hook(module, args, output):
            self.outputs[key] = output[0] if isinstance(output, tuple) else output

        return hook

    def __call__(self, sample):
        """Logits [N, V] and targets [N] of what counts, and the blocks' outputs there."""
        tokens = torch.tensor([sample["tokens"]])
        labels = torch.tensor(sample["labels"])
        if self.family.task == "causal_lm":
            logits, targets = self.model(input_ids=tokens).logits[0, :-1], labels[1:]
            counts = targets != -100
            kept = {key: one[0, :-1][counts] for key, one in self.outputs.items()}
            return logits[counts], targets[counts], kept
        if self.family.task == "seq2seq_lm":
            logits = self.model(input_ids=tokens, labels=labels[None]).logits[0]
        else:
            logits = self.model(input_ids=tokens).logits
        return logits, labels, {key: one[0] for key, one in self.outputs.items()}


def expected_step(family, directories, samples, projections, pairs):
    """Means of the parts over all samples, and the student's gradients."""
    teacher, student = (Oracle(family, one) for one in directories)
    sums, counts = {"ce": 0.0, "kd": 0.0}, {"logits": 0}
    for sample in samples:
        with torch.no_grad():
            theirs, _, teachers = teacher(sample)
        ours, targets, students = student(sample)
        log_q, log_p = ours.log_softmax(-1), theirs.log_softmax(-1)
        sums["ce"] = sums["ce"] + F.nll_loss(log_q, targets, reduction="sum")
        sums["kd"] = sums["kd"] + (log_p.exp() * (log_p - log_q)).sum()
        counts["logits"] += len(targets)
        for stack, of_stack in pairs.items():
            for s, t in of_stack:
                projected = projections[stack](students[stack, s], s)
                distance = 1 - F.cosine_similarity(projected, teachers[stack, t], dim=-1)
                sums[stack, s] = sums.get((stack, s), 0.0) + distance.sum()
            counts[stack] = counts.get(stack, 0) + len(distance)
    values = {name: sums[name] / counts["logits"] for name in ("ce", "kd")}
    means = [sums[stack, s] / counts[stack] for stack, of in pairs.items() for s, _ in of]
    values["ir"] = sum(means) / len(means)
    values["total"] = sum(weight * values[name] for name, weight in WEIGHTS.items())
    values["total"].backward()
    grads = {n: p.grad for n, p in student.model.named_parameters()}
    return {name: value.item() for name, value in values.items()}, grads


def matched(loaded):
    """The pairs by stack, and each stack's projections as functions of a student's layer."""
    terms = [term for term in loaded.run.objective.terms if term.name.startswith("ir")]
    layers = {term.place: term.matcher for term in terms}
    projections = {
        stack: lambda hidden, s, m=matcher: m.projections[f"s{s}"](hidden)
        for stack, matcher in layers.items()
    }
    return {stack: matcher.pairs for stack, matcher in layers.items()}, projections


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_that_of_a_loop_on_transformers(family, directories, family_run):
    loaded = family_run(family)
    pairs, projections = matched(loaded)
    assert pairs.keys() == FAMILIES[family].blocks.keys()
    samples = families.Samples(None, FAMILIES[family].task)
    expected, grads = expected_step(
        family, directories(family), [samples[i] for i in range(SAMPLES)], projections, pairs
    )
    module = loaded.run.student.module
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    values = loaded.step(next(loaded.run.source.steps(0)), 1)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-5), name
    norm = torch.stack([g.norm() for g in grads.values() if g is not None]).max()
    assert before.keys() == grads.keys()
    for name, grad in grads.items():
        found = before[name] - dict(module.named_parameters())[name]
        wanted = torch.zeros_like(found) if grad is None else grad
        assert (found - wanted).abs().max() <= 1e-4 * norm, name


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_matter(family, family_run):
    loaded = family_run(family)
    together = loaded.parts(loaded.batch(range(4)))
    alone = [loaded.parts(loaded.batch([i])) for i in range(4)]
    for name, value in together.items():
        assert value == pytest.approx(sum(one[name] for one in alone), rel=1e-5), name


def step_of(loaded):
    """The numbers of a first step, and the weights after it."""
    values = loaded.step(next(loaded.run.source.steps(0)), 1)
    return values, {n: p.detach().clone() for n, p in loaded.run.student.module.named_parameters()}


@pytest.mark.parametrize("family", ["bert", "t5", "bart", "gemma2", "mixtral"])
def test_micro_batches_give_the_step_of_one_batch(family, family_run):
    several, weights = step_of(family_run(family))
    whole = {"batch_size": 4, "gradient_accumulation_steps": 1}
    one, others = step_of(family_run(family, whole))
    for name, value in several.items():
        assert one[name] == pytest.approx(value, rel=1e-5), name
    assert all(torch.allclose(others[name], w, atol=1e-5) for name, w in weights.items())


@pytest.mark.parametrize("family", ["bert", "t5", "bart", "gemma2", "mixtral"])
def test_checkpointed_blocks_change_nothing(family, family_run):
    kept, weights = step_of(family_run(family))
    again, others = step_of(family_run(family, {"enable_activation_checkpointing": True}))
    for name, value in kept.items():
        assert again[name] == pytest.approx(value, rel=1e-6), name
    others = {name.replace("_checkpoint_wrapped_module.", ""): one for name, one in others.items()}
    assert others.keys() == weights.keys()
    assert all(torch.allclose(others[name], one, atol=1e-6) for name, one in weights.items())


@pytest.mark.parametrize("family", ["bert", "t5", "mistral"])
def test_compiled_blocks_change_nothing(family, family_run, monkeypatch):
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "eager")
    kept, _ = step_of(family_run(family))
    compiled, _ = step_of(family_run(family, {"compile": True}))
    for name, value in kept.items():
        assert compiled[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("family", ["bert", "t5", "bloom"])
def test_a_teacher_of_transformers_can_be_in_eight_bits(family, family_run):
    int8 = {"teacher_quantization": {"_component_": "torchao.quantization.Int8WeightOnlyConfig"}}
    loaded = family_run(family, int8)
    blocks = [b for blocks in loaded.run.teacher.model.stacks().values() for b in blocks]
    linear = [m for block in blocks for m in block.modules() if isinstance(m, torch.nn.Linear)]
    assert all(type(one.weight) is not torch.nn.Parameter for one in linear)
    ours, _ = step_of(loaded)
    exact, _ = step_of(family_run(family))
    assert ours["kd"] != exact["kd"]
    assert ours["kd"] == pytest.approx(exact["kd"], rel=0.05)


@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
@pytest.mark.parametrize("component", ["hf_models.auto_model", "hf_models.lora_auto_model"])
def test_what_is_trained_is_kept_in_fp32(family, component, family_run):
    loaded = family_run(family, {"dtype": "bf16", "model._component_": component})
    module = loaded.run.student.module
    trained = {p.dtype for p in module.parameters() if p.requires_grad}
    frozen = {p.dtype for p in module.parameters() if not p.requires_grad}
    assert trained == {torch.float32}
    assert frozen <= {torch.bfloat16}
    batch = loaded.batch(range(2))
    assert loaded.run.student.view(batch.inputs).hidden.dtype == torch.bfloat16
    exact, _ = step_of(family_run(family))
    values, _ = step_of(loaded)
    assert values["kd"] == pytest.approx(exact["kd"], rel=0.1, abs=1e-2)


def test_packed_documents_count_as_by_themselves(family_run, tmp_path):
    rows = [{"prompt": "the loop runs", "completion": f" {'until ' * n}it ends"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = {
        "_component_": "kd_data.prompt_completion_dataset",
        "data_files": str(tmp_path / "rows.jsonl"),
    }
    one_by_one = {"dataset": dataset, "tokenizer.max_seq_len": 40, "gradient_accumulation_steps": 1}
    packed = one_by_one | {"dataset": dataset | {"packed": True}}
    alone, together = family_run("mistral", one_by_one), family_run("mistral", packed)
    rows = alone.run.source.loader.dataset
    packs = together.run.source.loader.dataset
    assert 1 < len(packs) < len(rows)
    expected, found = (
        alone.parts(alone.batch(range(6))),
        together.parts(together.batch(range(len(packs)))),
    )
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_blocks_that_were_copied_are_matched_with_their_origins(tmp_path, load_run):
    teacher = save_family(tmp_path / "teacher", "t5")
    chosen = {"encoder": [0, 2], "decoder": [1]}
    student = init_student(teacher, tmp_path / "student", layers=chosen)
    cfg = OmegaConf.create(family_config(tmp_path, "t5", teacher, student))
    cfg.layer_mapping = {"encoder": "copied", "decoder": "copied"}
    pairs, _ = matched(load_run(cfg))
    assert pairs == {"encoder": [(0, 0), (1, 2)], "decoder": [(0, 1)]}
    (student / "init_student.json").unlink()
    with pytest.raises(ValueError, match="only students that kd_init_student has copied"):
        load_run(cfg)


def test_ir_is_the_mean_over_the_pairs_of_all_stacks(family_run):
    loaded = family_run("t5", {"layer_mapping": {"encoder": "forward", "decoder": "forward"}})
    values, _ = step_of(loaded)
    # Two pairs in the encoder, one in the decoder.
    expected = (2 * values["ir_encoder"] + values["ir_decoder"]) / 3
    assert values["ir"] == pytest.approx(expected, rel=1e-6)
    total = values["ce"] + values["kd"] + 3 * values["ir"]
    assert values["total"] == pytest.approx(total, rel=1e-6)


def test_dynamic_weights_know_the_layers_of_several_stacks(family_run):
    dynamic = {"shares": {"ce": 1.0, "kd": 1.0, "ir": 1.0}, "ema": 0.0}
    loaded = family_run("t5", {"loss_scaling.dynamic": dynamic})
    steps = loaded.run.source.steps(0)
    first, second = loaded.step(next(steps), 1), loaded.step(next(steps), 2)
    plain = sum(first[name] for name in ("ce", "kd", "ir"))
    assert second["weight/ir"] == pytest.approx(plain / first["ir"], rel=1e-5)
