"""Whole steps of every family against a loop on transformers: one sample at a time, no padding.

The loop knows nothing of ours: it takes transformers' own logits, and the outputs of blocks at
places that are written down by hand.
"""

import families
import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, auto_class, family_config, save_family
from omegaconf import OmegaConf

WEIGHTS = {"ce": 1.0, "kd": 1.0, "ir": 3.0}
SAMPLES = 4  # of a step: two micro-batches of two


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Teacher and student of a family, made once."""
    root, made = tmp_path_factory.mktemp("families"), {}

    def make(family):
        if family not in made:
            teacher = save_family(root / family / "teacher", family)
            made[family] = teacher, save_family(root / family / "student", family, 1, student=True)
        return made[family]

    return make


@pytest.fixture
def family_run(directories, tmp_path, load_run):
    """A loaded run of a family, with overrides by dotted key."""

    def make(family, overrides=None):
        cfg = OmegaConf.create(family_config(tmp_path, family, *directories(family)))
        for key, value in (overrides or {}).items():
            OmegaConf.update(cfg, key, value, force_add=True)
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
