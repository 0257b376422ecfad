"""A loss on the relations between tokens does not see which documents share a batch."""

import pytest
import tiny
import torch
from resuming import records

from layer_mapping import RelationalLoss

RELATIONS = {"ir_loss": {"_component_": "layer_mapping.RelationalLoss"}}


class AcrossDocuments(RelationalLoss):
    """The mistake: as if all tokens of a micro-batch belonged together."""

    def distance_in_documents(self, student, teacher, documents):
        return super().distance_in_documents(student, teacher, torch.zeros_like(documents))


def run(make_run, output_dir, batch_size, accumulation, **loss):
    sizes = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation, "epochs": 2}
    loaded = make_run(RELATIONS | sizes | {"output_dir": str(output_dir)})
    if loss:
        loaded.term("ir").matcher.loss = loss["loss"]
    loaded.train()
    return [[r[key] for key in ("total", "ir", "grad_norm")] for r in records(output_dir)]


def test_four_samples_are_one_step_however_they_are_split(make_run, tmp_path):
    splits = [(4, 1), (2, 2), (1, 4)]
    runs = [run(make_run, tmp_path / f"{b}_{k}", b, k) for b, k in splits]
    assert len(runs[0]) == 4
    assert all(total > ir > 0 for total, ir, _ in runs[0])
    for other in runs[1:]:
        for ours, theirs in zip(other, runs[0], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_split_would_show_relations_across_documents(make_run, tmp_path):
    """Otherwise the test above would not see them."""
    whole, split = (
        run(make_run, tmp_path / f"{b}", b, 4 // b, loss=AcrossDocuments())[0] for b in (4, 1)
    )
    assert split[1] != pytest.approx(whole[1], rel=1e-2)


def ir_sum(loaded, batches):
    return sum(loaded.parts(batch)["ir"] for batch in batches)


@pytest.mark.parametrize("scope", ["labels", "all"])
def test_packed_and_blank_samples(make_run, scope):
    changes = RELATIONS | {"token_scope.ir": scope, "tokenizer.max_seq_len": 120}
    padded = make_run(changes)
    packed = make_run(changes | {"dataset.packed": True, "dataset.split_across_pack": False})
    loaders = [loaded.run.source.loader for loaded in (padded, packed)]
    assert len(loaders[1].dataset) < len(loaders[0].dataset) == len(tiny.SENTENCES)
    alone, together, in_packs = (
        ir_sum(loaded, [loader.collate_fn([loader.dataset[i] for i in group]) for group in groups])
        for loaded, loader, groups in (
            (padded, loaders[0], [[i] for i in range(8)]),
            (padded, loaders[0], [range(8)]),
            (packed, loaders[1], [range(len(loaders[1].dataset))]),
        )
    )
    assert together == pytest.approx(alone, rel=1e-5)
    assert in_packs == pytest.approx(alone, rel=1e-5)

    first, second = (loaders[0].dataset[i] for i in (0, 1))
    blank = loaders[0].collate_fn([first, second | {"blank": True}])
    only = loaders[0].collate_fn([first])
    assert ir_sum(padded, [blank]) == pytest.approx(ir_sum(padded, [only]), rel=1e-5)
