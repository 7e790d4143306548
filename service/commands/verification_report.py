"""The printed report of a verification: a table of outputs, and a line per further comparison."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from model_export.chunk.choice import ChunkChoice
from model_export.compare import OutputParity
from model_export.drift import Drift
from model_export.report import ParityReport
from service.commands.tables import parity_lines, table


def outputs_table(name: str, report: ParityReport) -> Table:
    """Return one line per output: how far it was off, where, and over how many numbers."""
    lines = [
        (line.name, f"{line.max_abs:.1e}", f"{line.max_rel:.1e}", f"{line.atol:.1e}", f"{line.at_step:,}",
         f"{line.sequence}, sequence {line.row}", f"{line.compared:,}", _scale_line(line))
        for line in report.outputs
    ]  # fmt: skip
    columns = (
        "output", "largest difference", "of the value", "allowed", "at timestep", "of", "numbers compared", "values"
    )  # fmt: skip
    return table(f"{name}: step by step against {report.parity.against}", columns, lines)


def report_lines(report: ParityReport) -> Iterator[str]:
    """Yield a line for each further part of the verification, including skipped parts."""
    yield f"parity:  {parity_lines(report.parity.model_dump())}"
    for line in report.outputs:
        if line.weak:
            yield f"weak:    output {line.name}: {line.why}; a wrong graph might have passed"
    if not report.outputs:
        yield "weak:    no output could be compared"
    if report.drift is not None:
        yield f"long:    {_drift_line(report.drift)}"
    yield f"alone:   {report.max_abs_alone:.1e} largest difference of a row run alone from the same row in a batch"
    yield f"saved:   {report.max_abs_saved:.1e} largest difference that saving and restoring states each timestep makes"
    lengths = " and of ".join(", ".join(map(str, part)) for part in report.chunk_lengths)
    yield f"chunks:  {report.max_abs_chunk:.1e} largest difference of chunks of {lengths} timesteps from single steps"
    if report.chunk is not None:
        yield f"speed:   {_chunk_line(report.chunk)}"
    for skipped in report.skipped:
        yield f"skipped: {skipped.what}: {skipped.why}"


def _scale_line(line: OutputParity) -> str:
    scale = line.scale
    return f"{scale.largest:.1e} at most, {scale.median:.1e} in the middle, {scale.distinct:.0%} distinct"


def _drift_line(drift: Drift) -> str:
    line = (
        f"{drift.max_abs:.1e} largest difference in a run of {drift.steps:,} timesteps (at {drift.at_step:,}): "
        f"{drift.first:.1e} in the first {drift.ends}, {drift.last:.1e} in the last"
    )
    return f"{line}; {drift.note}" if drift.note else line


def _chunk_line(chunk: ChunkChoice) -> str:
    if chunk.chunk == "step":
        return f"a chunk takes as many runs as it has timesteps: {chunk.why}"
    alone = {timing.steps > 1: timing for timing in chunk.timings if timing.rows == 1}
    several, single = alone[True], alone[False]
    return (
        f"a chunk of {several.steps} timesteps takes {several.dynamic:,.0f} us in one run, {several.stepwise:,.0f} us "
        f"step by step ({chunk.gain:.1f} times): {chunk.why}; a single step takes {single.dynamic:.1f} us, and "
        f"{single.stepwise:.1f} us without a time axis in the graph"
    )
