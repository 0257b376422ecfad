"""Which room may know what: the arrows between them, read from the source."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MATHS = [*(SOURCE / "kd_losses").rglob("*.py"), *(SOURCE / "layer_mapping").rglob("*.py")]
ROOMS = {path.name for path in SOURCE.iterdir() if path.is_dir()}
LOOP = ("train", "loop", "step", "validation", "objective/objective")


def imported(path):
    """Every dotted name that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MATHS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_maths_knows_neither_ranks_nor_other_rooms(path):
    text = path.read_text()
    assert "distributed" not in text
    assert "DTensor" not in text
    others = ROOMS - {path.relative_to(SOURCE).parts[0]}
    assert {name.partition(".")[0] for name in imported(path)}.isdisjoint(others)


@pytest.mark.parametrize("room", ["hf_models", "kd_config", "kd_data"])
def test_models_and_data_do_not_know_the_training(room):
    for path in (SOURCE / room).rglob("*.py"):
        tops = {name.partition(".")[0] for name in imported(path)}
        assert tops.isdisjoint({"kd_training", "kd_analysis"}), path


@pytest.mark.parametrize("name", LOOP)
def test_the_loop_never_asks_how_many_ranks_there_are(name):
    path = SOURCE / "kd_training" / f"{name}.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            condition = ast.unparse(node.test)
            assert "world_size" not in condition, condition
            assert "isinstance" not in condition or "placement" not in condition, condition
    assert not any("Sharded" in n or "torch.distributed.fsdp" in n for n in imported(path))
