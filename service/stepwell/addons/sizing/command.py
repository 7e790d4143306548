"""`stepwell size`: how many replicas of the service, and which Redis, a number of streams needs."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stepwell.addons.sizing.arithmetic import CONSTANTS, Load, Sending, Size
from stepwell.addons.sizing.arithmetic import size as size_of
from stepwell.commands.tables import format_bytes, key_value_table, print_json, show, table
from stepwell_export.runtime.describe import load as load_model
from stepwell_export.runtime.step_model import StepModel

_MEASURE_S = 0.3


def size(
    *,
    streams: Annotated[int, typer.Option(min=1, help="Live streams.")],
    rate: Annotated[float, typer.Option(min=0, help="Steps per second of all streams together.")],
    model: Annotated[Path, typer.Option(metavar="FILE.onnx", help="The model: its states, and its time for a row.")],
    transport: Annotated[
        Sending, typer.Option(help="One timestep a request, a message, or columns of many streams a message.")
    ] = Sending.HTTP,
    primary_gib: Annotated[
        float, typer.Option("--primary-gib", min=0.25, help="The largest maxmemory of one Redis, in GiB.")
    ] = 16,
    run_us: Annotated[
        float | None, typer.Option(min=0, help="CPU of the model for one row, in us. By default measured here.")
    ] = None,
    constants: Annotated[bool, typer.Option("--constants", help="Also show the numbers that are used.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the numbers that are used.")] = False,
) -> None:
    """Compute how many replicas, and which Redis, a number of streams needs.

    The page "Sizing" of the documentation has the arithmetic.
    """
    loaded = load_model(model)
    load = Load(
        streams=streams,
        rate=rate,
        state_bytes=loaded.state_bytes,
        output_bytes=_output_bytes(loaded),
        run_us=_run_us(loaded) if run_us is None else run_us,
        sending=transport,
    )
    needed = size_of(load, max_primary_bytes=int(primary_gib * 2**30))
    if as_json:
        used = {name: asdict(constant) for name, constant in CONSTANTS.items()}
        print_json({"load": asdict(load), "size": asdict(needed), "constants": used})
        return
    show(key_value_table("", _rows(load, needed)))
    if constants:
        rows = ([name, f"{one.value:g}", one.unit, one.source] for name, one in CONSTANTS.items())
        show(table("", ("", "value", "unit", "source"), rows))


def _rows(load: Load, needed: Size) -> dict[str, str]:
    of_each = "" if needed.primaries == 1 else " of each"
    store = "one Redis" if needed.primaries == 1 else f"a Cluster of {needed.primaries} primaries, by {needed.bound}"
    maxmemory, ram, disk = map(format_bytes, (needed.maxmemory_bytes, needed.ram_bytes, needed.disk_bytes))
    replica_memory = format_bytes(int(CONSTANTS["replica_gib"].value * 2**30))
    return {
        "streams": f"{load.streams:,} with records of {format_bytes(needed.record_bytes)}",
        "steps": f"{load.rate:,.0f}/s; the model takes {load.run_us:.1f} us a row",
        "replicas": f"{needed.replicas} with one worker, 1 CPU and {replica_memory} each",
        "CPU of a replica": f"{needed.step_us:.1f} us a step",
        "store": f"{store}; {format_bytes(needed.data_bytes)} in all",
        f"maxmemory{of_each}": f"{maxmemory}, on a machine with {ram}",
        f"CPU{of_each}": f"{needed.commit_us:.1f} us a step, {needed.primary_share:.2f} of a core, one for rewrites",
        f"disk{of_each}": f"{disk}, {format_bytes(needed.log_bytes_per_s)}/s written",
    }


def _output_bytes(model: StepModel) -> int:
    return sum(int(np.prod(output.row_shape)) * np.dtype(output.dtype).itemsize for output in model.manifest.answered)


def _run_us(model: StepModel) -> float:
    """Return the model's time for one row: the fastest of some runs of a batch as large as it may be."""
    rows = model.manifest.batch.max if model.batched else 1
    inputs = {one.name: np.zeros((rows, *one.row_shape), one.dtype) for one in model.manifest.inputs}
    states = model.initial_states(rows)
    fastest, until = float("inf"), time.perf_counter() + _MEASURE_S
    while fastest == float("inf") or time.perf_counter() < until:
        started_at = time.perf_counter()
        model.step(inputs, states)
        fastest = min(fastest, time.perf_counter() - started_at)
    return fastest / rows * 1e6
