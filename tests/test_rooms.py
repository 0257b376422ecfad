"""Which room may know what: the arrows between them, read from the source."""

import ast
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
# Each room with those that it may know: arrows point down only, so there is no circle of rooms.
BELOW = {
    "kd_losses": set(),
    "layer_mapping": set(),
    "hf_models": {"kd_losses", "layer_mapping"},
    "kd_config": {"hf_models"},
    "kd_data": {"kd_config", "hf_models"},
    "kd_teachers": {"kd_data", "hf_models", "kd_losses", "layer_mapping"},
    "kd_training": {
        "kd_teachers", "kd_data", "kd_config", "hf_models", "layer_mapping", "kd_losses",
    },
    "kd_analysis": {
        "kd_training", "kd_data", "kd_config", "hf_models", "layer_mapping", "kd_losses",
    },
}  # fmt: skip
FILES = sorted(SOURCE.rglob("*.py"))
# What turns a config into a run, and starts it.
MAY_READ_THE_CONFIG = ("prepare.py", "start.py", "many_devices.py", "caching/run.py")
LOOP = ("train", "loop", "step", "validation", "saving", "objective/objective")


def room(path):
    return path.relative_to(SOURCE).parts[0]


def name_of(path):
    return str(path.relative_to(SOURCE))


def imported(path):
    """Every dotted name that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_room_has_its_place():
    assert {path.name for path in SOURCE.iterdir() if path.is_dir()} == set(BELOW)
    for below in BELOW.values():
        assert below <= set(BELOW)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_arrows_point_down(path):
    known = {name.partition(".")[0] for name in imported(path)} & set(BELOW)
    assert known <= BELOW[room(path)] | {room(path)}


def test_the_order_of_rooms_has_no_circle():
    done = set()
    while len(done) < len(BELOW):
        free = {name for name, below in BELOW.items() if below <= done} - done
        assert free, f"a circle among {set(BELOW) - done}"
        done |= free


def modules():
    """Module → the modules of ours that it imports at its top."""
    names = {
        ".".join(p.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): p
        for p in FILES
    }
    found = {}
    for name, path in names.items():
        targets = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    targets.add(inner if inner in names else node.module)
        # A package's own face imports its parts, which do not ask the face.
        found[name] = {t for t in targets if t in names and t != name}
    return found


def test_no_circle_of_modules():
    graph, done, open_ = modules(), set(), []

    def visit(name):
        if name in done:
            return
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        open_.append(name)
        for target in sorted(graph[name]):
            visit(target)
        done.add(open_.pop())

    for name in sorted(graph):
        visit(name)


@pytest.mark.parametrize(
    "path", [p for p in FILES if room(p) in ("kd_losses", "layer_mapping")], ids=name_of
)
def test_the_maths_knows_no_ranks(path):
    text = path.read_text()
    assert "distributed" not in text
    assert "DTensor" not in text


@pytest.mark.parametrize(
    "path", [p for p in FILES if room(p) in ("kd_training", "kd_teachers")], ids=name_of
)
def test_nobody_behind_prepare_reads_a_config(path):
    if not str(path).endswith(MAY_READ_THE_CONFIG):
        assert "DictConfig" not in path.read_text()


@pytest.mark.parametrize("name", LOOP)
def test_the_loop_never_asks_how_many_ranks_there_are(name):
    path = SOURCE / "kd_training" / f"{name}.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            condition = ast.unparse(node.test)
            assert "world_size" not in condition, condition
            assert "isinstance" not in condition or "placement" not in condition, condition
    assert not any("Sharded" in n or "torch.distributed.fsdp" in n for n in imported(path))


def test_no_two_classes_have_one_name():
    classes = Counter(
        node.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, number in classes.items() if number > 1] == []


INTERFACES = ("Model", "Teacher", "Rows", "Source", "Placement")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nobody_asks_which_of_our_interfaces_something_is(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            asked = ast.unparse(node.args[1])
            assert not any(asked == name for name in INTERFACES), ast.unparse(node)
