"""`stepwell inspect`: show a model's tensors, state size, verification and graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stepwell.commands.interrupted import reported_interrupt
from stepwell.commands.tables import (
    Json,
    covered_lines,
    format_bytes,
    key_value_table,
    parity_lines,
    print_json,
    show,
    tensors_table,
)
from stepwell_export.runtime.describe import describe, load


@reported_interrupt()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="A model with a manifest, inside or beside it.")],
    as_json: Json = False,
) -> None:
    """Show a model's inputs, outputs, states, bytes per stream, parity report and graph size."""
    model = load(file)
    description = describe(file, model)
    if as_json:
        print_json(description)
        return
    batch, graph = description["batch"], description["graph"]
    why = f": {reason}" if (reason := batch.get("reason")) else ""
    opset = ", ".join(f"{domain} {version}".strip() for domain, version in graph["opset"].items())
    show(
        tensors_table(model.manifest),
        key_value_table(
            "",
            {
                "bytes per stream": format_bytes(description["bytes_per_stream"]),
                "rows": f"run together, {batch['max']} at most" if batch["together"] else f"run one at a time{why}",
                **_latency(description["outputs"]),
                **({"every": f"{every}, from one timestep to the next"} if (every := description["every"]) else {}),
                **_learns(description["learn"]),
                "chunks": "many timesteps in one run" if description["chunked"] else "timestep by timestep",
                "weights": f"stored as {description['weights']}" if description["weights"] else "unchanged",
                "parity": parity_lines(description["parity"]),
                **_covered(description["parity"]),
                "graph": f"{format_bytes(graph['bytes'])}, {graph['nodes']} nodes, opset {opset}",
                "fingerprint": description["fingerprint"],
                "manifest": "inside the file" if description["manifest_from"] == "file" else "beside the file",
            },
        ),
    )


def _latency(outputs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return how many samples outputs are late, where they have samples."""
    late = [(output["name"], output["latency"]) for output in outputs if output.get("latency") is not None]
    each = ", ".join(f"{name} {count:,} samples" for name, count in late)
    return {"latency": each} if late else {}


def _learns(learn: str | None) -> dict[str, str]:
    """Return the input that marks the timesteps that are learned from, where there is one."""
    return {} if learn is None else {"learns": f"where its input {learn!r} is true, which is not sent: not in rollouts"}


def _covered(parity: Mapping[str, Any] | None) -> dict[str, str]:
    """Return what of the model's behaviour was compared and what was not, by its heading."""
    covered = (parity or {}).get("covered")
    if covered is None:
        return {}
    lines = [line.partition(":") for line in covered_lines(covered)]
    weak = {"never": "; ".join(covered["one_sided"])} if covered["one_sided"] else {}
    return {("not covered" if name == "not" else name): text.strip() for name, _, text in lines} | weak
