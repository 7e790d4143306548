"""Finds the row of each input of a step graph; a length that nothing in the graph declares has to be set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace as replace_fields
from typing import TYPE_CHECKING

from stepwell_export.adoption.axes import Dim, Row, find_batch_axes, find_row, length_unknown, open_axes
from stepwell_export.adoption.ort_graph import OrtGraph
from stepwell_export.adoption.overrides import Overrides
from stepwell_export.adoption.pairing import related
from stepwell_export.runtime.errors import ModelLoadError, UnclearModelError
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    pass

_RATES = {"sr", "fs", "rate", "samplerate", "samplingrate"}

Shapes = dict[str, tuple[int, ...]]
"""By output: its shape."""


def find_rows(graph: OrtGraph, hints: Overrides) -> dict[str, Row]:
    """Return the row of every input that is not a constant.

    Raises:
        UnknownLengthError: A length is not known.
        UnclearModelError: Something else is open, or a declaration does not fit.
    """
    changing = [tensor for tensor in graph.inputs if tensor.name not in hints.constants]
    for tensor in changing:
        if re.sub(r"[^a-z]", "", tensor.name.lower()) in _RATES and tensor.name not in hints.shapes:
            raise UnclearModelError(
                f"Input {tensor.name!r} ({tensor.dtype}) looks like a sampling rate, which does not change.",
                fix=f"Say its value: `--constant {tensor.name}=16000`, or `--shape {tensor.name}=1` if it does change.",
            )
    axes = find_batch_axes(changing, hints.batch_axes)
    states = _likely_states(graph, hints)
    rows: dict[str, Row] = {}
    lengths: dict[Dim, Dim] = {}  # by the symbol that declares them
    for tensor in sorted(changing, key=lambda tensor: tensor.name in states):
        is_state = tensor.name in states
        rows[tensor.name] = row = find_row(
            replace_fields(tensor, dims=tuple(lengths.get(d, d) for d in tensor.dims)) if is_state else tensor,
            axes[tensor.name],
            said=hints.shapes.get(tensor.name),
            context=hints.windows.get(tensor.name),
            time_axes=hints.time_axes,
            is_state=is_state,
        )
        if row.window_axis is None:
            of_row = [d for axis, d in enumerate(tensor.dims) if axis != axes[tensor.name]]
            lengths |= {d: n for d, n in zip(of_row, row.graph, strict=True) if isinstance(d, str)}
    return {tensor.name: rows[tensor.name] for tensor in changing}


def _likely_states(graph: OrtGraph, hints: Overrides) -> Mapping[str, str]:
    """Return the next value of each input that is a state, as a person set it or as the names suggest."""
    return hints.states or {
        tensor.name: after.name
        for tensor in graph.inputs
        for after in graph.outputs
        if (tensor.dtype, len(tensor.dims)) == (after.dtype, len(after.dims)) and related(tensor.name, after.name)
    }


def ask_for_length(graph: OrtGraph, hints: Overrides, reason: ModelLoadError) -> None:
    """Ask for the length of an open axis that was read as one timestep, where the graph does not run so.

    Raises:
        UnclearModelError: There is one; names the flag.
    """
    changing = [tensor for tensor in graph.inputs if tensor.name not in hints.constants]
    batch = find_batch_axes(changing, hints.batch_axes)
    for tensor in changing:
        if tensor.name not in hints.shapes and open_axes(tensor, batch[tensor.name], hints.time_axes.get(tensor.name)):
            raise length_unknown(
                tensor, ", and with 1 the graph does not run", is_state=tensor.name in _likely_states(graph, hints)
            ) from reason


def try_rows(graph: OrtGraph, rows: Mapping[str, Row], constants: Mapping[str, Array]) -> tuple[Shapes, Shapes | None]:
    """Return the outputs' shapes for one row, and for two rows if the graph takes two."""
    one = graph.shapes(rows, constants, 1)
    if any(row.batch_axis is None for row in rows.values()):
        return one, None
    try:
        return one, graph.shapes(rows, constants, 2)
    except ModelLoadError:
        return one, None
