"""The rule of each operator, by the graph that stands beside it in the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stepwell_export.converted import check_model
from stepwell_export.streaming import convert
from stepwell_export.streaming.rules.table import TABLE
from tests.model_export.streaming.zoo_parts import X, graph

CASES = {name: entry.case for name, entry in TABLE.items() if entry.case is not None}


@pytest.mark.parametrize("operator", CASES)
def test_the_graph_beside_the_rule_of_an_operator_equals_itself_step_by_step(operator: str) -> None:
    case = CASES[operator]
    given: dict[str, Any] = {name: np.asarray(value, np.int64) for name, value in case.integers.items()}
    given |= case.weights
    nodes = case.nodes.replace("OP ", f"{operator} ")
    kind = "int64" if operator.startswith("Arg") else "float"
    model = graph(f"({X}) => ({kind}[] y) {{ {nodes} }}", opset=case.opset, **given)

    made = convert(model, name="case", length=case.length)

    assert any(node.op_type == operator for node in model.graph.node)
    assert made.manifest.states
    check_model(made)
