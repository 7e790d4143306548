"""`lax.scan` as a Scan of ONNX, which the streaming pass makes states of."""

from __future__ import annotations

from typing import Any

from onnx import helper

from stepwell_export.jax.graph import JaxGraph, rule
from stepwell_export.jax.values import JaxValue
from stepwell_export.verify.decisions.jax import scan_counts


@rule("scan")
def _scan(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> list[str]:
    params, closed = equation.params, equation.params["jaxpr"]
    n_consts, n_carry = scan_counts(params)
    consts, given = inputs[:n_consts], inputs[n_consts:]
    captured = [c if c.is_known else JaxValue(c.shape, c.dtype, graph.small(c), ones=c.ones) for c in consts]
    sent = [graph.whole(value) for value in given]
    with graph.body() as nodes:
        takes = [
            JaxValue(tuple(var.aval.shape), str(var.aval.dtype), graph.fresh("element"))
            for var in closed.jaxpr.invars[n_consts:]
        ]
        gives = []
        for value in graph.run(closed.jaxpr, closed.consts, [*captured, *takes]):
            gives.append(graph.fresh("given"))
            graph.add("Identity", [graph.whole(value)], [gives[-1]])
    body = helper.make_graph(
        nodes,
        "body",
        [helper.make_empty_tensor_value_info(value.tensor) for value in takes],
        [helper.make_empty_tensor_value_info(name) for name in gives],
    )
    outputs = [graph.fresh("Scan") for _ in gives]
    n_sequences, n_results = len(given) - n_carry, len(gives) - n_carry
    directions = {"scan_input_directions": n_sequences, "scan_output_directions": n_results}
    turned: dict[str, Any] = {name: [1] * count for name, count in directions.items() if count and params["reverse"]}
    graph.add("Scan", sent, outputs, body=body, num_scan_inputs=n_sequences, **turned)
    return outputs


@rule("while", "cond")
def _by_value(graph: JaxGraph, equation: Any, _inputs: list[JaxValue]) -> str:
    raise graph.refuse(
        equation,
        "decides by a value what is computed"
        if equation.primitive.name == "cond"
        else "turns until a value is reached",
        "Use jnp.where, or lax.scan with a fixed number of turns.",
    )
