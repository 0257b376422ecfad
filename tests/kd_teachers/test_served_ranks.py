"""Two ranks whose teacher is behind a server, and lose it."""

import pytest
from kept import changed, logged
from omegaconf import OmegaConf
from ranks import on_ranks
from scoring_server import Scorer, serving

from kd_config.check import check_config
from kd_training import OneDevice, run
from kd_training.many_devices import make_sharded


def on_rank(rank, text):
    cfg = check_config(OmegaConf.create(text))
    run(cfg, make_sharded(cfg))


@pytest.mark.parametrize("measured", [False, True])
def test_a_server_that_is_lost_is_lost_for_both(tiny_run, tmp_path, measured):
    scorer = Scorer(tiny_run.directories["teacher"])

    def config(where, url, ranks, **changes):
        own = {
            "output_dir": str(tmp_path / where),
            "layer_mapping": "none",
            "teacher_model": None,
            "teacher_checkpointer": None,
            "teacher_server": {"url": url, "top_k": 8, "attempts": 2, "wait_s": 0},
            "batch_size": 2 // ranks,
            "epochs": 2,
        }
        if measured:
            own |= {"dataset_val": "${dataset}", "run_val_every_n_steps": 1}
            own["on_policy"] = {"max_new_tokens": 3, "prompt_tokens": 3}
        return changed(tiny_run.config(tmp_path), own | changes)

    def train(name, **changes):
        text = OmegaConf.to_yaml(config("out", url, 2, **changes))
        on_ranks(2, str(tmp_path / name), on_rank, text)

    with serving(scorer) as url:
        run(config("plain", url, 1), OneDevice("cpu"))
        asked = len(scorer.asked)
        scorer.faults = dict.fromkeys(range(asked + asked, asked + 1000), 503)
        with pytest.raises(RuntimeError, match=r"(?s)HTTP 503.*saved .*step_"):
            train("lost")
        scorer.faults = {}
        train("found", resume_from_checkpoint=True)
    ours, theirs = (logged(tmp_path / name) for name in ("out", "plain"))
    for one, other in zip(ours, theirs, strict=True) if not measured else ():
        assert one["kd"] == pytest.approx(other["kd"], rel=1e-5)
    assert max(one["step"] for one in ours) == max(one["step"] for one in theirs)
