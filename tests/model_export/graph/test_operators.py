"""The table of operators that carry states: one entry is all that a new one needs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from stepwell_export.graph.operators import RNN, RUNNING, STATEFUL

PACKAGE = Path(__file__).parents[3] / "model_export" / "stepwell_export"
ALONG_TIME = sorted(name for name, operator in STATEFUL.items() if operator.time_axis is not None and name not in RNN)


@pytest.mark.parametrize("name", [*ALONG_TIME, *sorted(RUNNING.keys() - {"CumSum"})])  # which rules for Keras emit
def test_an_operator_with_a_state_along_time_is_named_in_the_table_alone(name: str) -> None:
    naming = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(isinstance(node, ast.Constant) and node.value == name for node in ast.walk(ast.parse(path.read_text())))
    ]

    assert naming == ["graph/operators.py"]


def test_each_of_them_is_stepped_by_one_of_two_rules() -> None:
    pytest.importorskip("onnx", reason="onnx is not installed (the extra `onnx`)")
    from stepwell_export.streaming.rules.recurrent import running, stateful_op
    from stepwell_export.streaming.rules.table import RULES

    assert ALONG_TIME
    assert {RULES[name] for name in (*ALONG_TIME, *RNN)} == {stateful_op}
    assert {RULES[name] for name in RUNNING} == {running}
