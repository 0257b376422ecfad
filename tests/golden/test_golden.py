"""No number changes unnoticed: short runs of every feature against a recorded table.

The table was recorded with one thread on one machine, where the comparison is exact
(`python tests/golden/golden_cases.py --check`). Other processors sum in other orders, which
training carries on: metrics may differ by 1e-4, weights by 1e-4, those in few bits by more.
"""

import json

import golden_cases
import pytest

# In bf16, NF4 or 8 bits a value near the middle of two falls to either side.
_ROUGH = {"bf16", "bf16, all weights", "qlora", "nf4 teacher", "int8 teacher", "8-bit adam"}
_TOLERANCE, _ROUGH_TOLERANCE = 1e-4, 2e-2


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    golden_cases.make_inputs(root)
    return root


@pytest.fixture(scope="module")
def table():
    return json.loads(golden_cases.TABLE.read_text(encoding="utf-8"))


def test_the_table_is_that_of_the_cases(table):
    assert table.keys() == golden_cases.CASES.keys()


@pytest.mark.parametrize("case", golden_cases.CASES)
def test_the_numbers_are_the_recorded_ones(inputs, table, case):
    actual, expected = golden_cases.run_case(inputs, case), table[case]
    close = {"rel": _ROUGH_TOLERANCE if case in _ROUGH else _TOLERANCE, "abs": 1e-7}
    assert len(actual["metrics"]) == len(expected["metrics"])
    for ours, theirs in zip(actual["metrics"], expected["metrics"], strict=True):
        assert ours == pytest.approx(theirs, **close)
    assert actual["weights"] == pytest.approx(expected["weights"], **close)
