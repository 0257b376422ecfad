"""kd_init_student chooses blocks by measuring them on a dataset, and says and draws which."""

import json

import pytest
from families import auto_class, save_family
from omegaconf import OmegaConf

from hf_models import copied_blocks

TASKS = {"gpt2": "causal_lm", "bert": "sequence_classification", "t5": "seq2seq_lm"}
COUNTS = {"gpt2": 2, "bert": 2, "t5": {"encoder": 2, "decoder": 1}}


@pytest.fixture
def init(tune_run, tmp_path):
    """Runs kd_init_student on a family's teacher; None leaves a key out."""

    def run(family, criterion, **changes):
        teacher = save_family(tmp_path / "teacher", family)
        node = {"_component_": "hf_models.tokenizer", "checkpoint_dir": str(teacher)}
        cfg = {
            "teacher_dir": str(teacher),
            "output_dir": str(tmp_path / "student"),
            "layers": criterion,
            "num_layers": COUNTS[family],
            "tokenizer": node,
            "dataset": {"_component_": "families.Samples", "task": TASKS[family], "size": 6},
            "num_samples": 5,
            "batch_size": 2,
        } | changes
        kept = {key: value for key, value in cfg.items() if value is not None}
        OmegaConf.save(OmegaConf.create(kept), tmp_path / "init.yaml")
        code, out, err = tune_run("kd_init_student", tmp_path / "init.yaml")
        return code, out + err, tmp_path / "student"

    return run


@pytest.mark.parametrize("family", TASKS)
@pytest.mark.parametrize("criterion", ["block_influence", "angular_distance"])
def test_a_student_of_measured_blocks(init, family, criterion):
    code, said, student = init(family, criterion)
    assert code == 0, said
    origin = json.loads((student / "init_student.json").read_text())
    assert origin["chosen_by"] == criterion
    counts = COUNTS[family]
    for stack, blocks in copied_blocks(student).items():
        assert len(blocks) == (counts if isinstance(counts, int) else counts[stack])
        scores = origin["scores"][stack]
        if criterion == "block_influence":
            least = min(scores[block] for block in blocks)
            assert all(s <= least for i, s in enumerate(scores) if i not in blocks)
        else:
            first = next(i for i in range(len(scores) + 1) if i not in blocks)
            assert scores[first] == min(scores)
    assert (student / "blocks.png").read_bytes().startswith(b"\x89PNG")
    assert "blocks.png" in (student / "README.md").read_text()
    _, report = auto_class(family).from_pretrained(student, output_loading_info=True)
    assert not any(report.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": None}, "block_influence is measured on texts: set dataset and tokenizer"),
        ({"tokenizer": None}, "tokenizer must be set, as dataset is"),
        ({"num_layers": 9}, "num_layers is 9; the teacher has 4 layers"),
        ({"num_samples": 0}, "there is no text to measure the blocks on"),
    ],
)
def test_what_cannot_be_measured_is_refused(init, changes, words):
    code, said, student = init("gpt2", "block_influence", **changes)
    assert code == 1
    assert words in said.strip().splitlines()[-1]
    assert not student.exists()
