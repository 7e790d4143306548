"""Finds the row of each input of a step graph; a length that nothing in the graph declares has to be set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace as replace_fields
from typing import TYPE_CHECKING

from stepwell_export.adoption.axes import Dim, Row, find_batch_axes, find_row, open_axes, role, shown
from stepwell_export.adoption.ort_graph import OrtGraph
from stepwell_export.adoption.overrides import Overrides
from stepwell_export.adoption.pairing import related
from stepwell_export.runtime.errors import ModelLoadError, StepwellError, UnclearModelError
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    import onnx

_FRAMES = (
    80, 96, 128, 160, 192, 200, 240, 256, 257, 320, 384, 400, 441, 480, 512, 576, 640, 768, 800, 882, 960, 1024, 1280,
    1536, 1600, 1920, 2048, 2560, 3072, 3200, 4096, 4800,
)  # fmt: skip
"""Lengths of a row that are usual above 64: of audio at its usual rates, of spectra."""

_MOST_NAMED = 4
"""Rows that run, of which each is offered as a flag."""

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


def ask_for_length(
    graph: OrtGraph, hints: Overrides, constants: Mapping[str, Array], model: onnx.ModelProto, reason: StepwellError
) -> None:
    """Ask for the length of the one row that is open, where the graph runs with few of those that are usual.

    Raises:
        UnclearModelError: It does; names the flags that let it run.
    """
    changing = [tensor for tensor in graph.inputs if tensor.name not in hints.constants]
    batch = find_batch_axes(changing, hints.batch_axes)
    open_ = {
        tensor.name: axes
        for tensor in changing
        if tensor.name not in hints.shapes
        and (axes := open_axes(tensor, batch[tensor.name], hints.time_axes.get(tensor.name)))
    }
    if len(open_) != 1 or len(next(iter(open_.values()))) != 1:
        return
    [(name, [axis])] = open_.items()
    tensor = next(tensor for tensor in changing if tensor.name == name)
    row = [length for at, length in enumerate(tensor.dims) if at not in {batch[name], hints.time_axes.get(name)}]
    place = row.index(tensor.dims[axis])
    past = hints.windows.get(name, 0)
    after = _likely_states(graph, hints).get(name)
    running: list[list[int]] = []
    lengths = _likely_lengths(model)
    for length in lengths:
        said = [d if isinstance(d, int) else length - past for d in row]
        tried = replace_fields(hints, shapes={**hints.shapes, name: said})
        if said[place] >= 1 and _runs(graph, tried, constants, {} if after is None else {name: after}):
            running.append(said)
    if not 0 < len(running) <= len(lengths) // 2:
        return
    words = ["x".join(map(str, said)) for said in running]
    flags = " or ".join(f"`--shape {name}={word}`" for word in words)
    subject, wanted = role(is_state=after is not None)
    raise UnclearModelError(
        f"{subject} {name!r} is declared {shown(tensor.dims)}; the length of one row is not known"
        + (", and with 1 the graph does not run." if isinstance(reason, ModelLoadError) else "."),
        fix=f"{wanted}: {flags}."
        if len(words) <= _MOST_NAMED
        else f"{wanted}: `--shape {name}=LENGTH`, with the length that the model was "
        f"trained for. Of {len(lengths)} usual lengths, the graph runs with {', '.join(words)}.",
    ) from reason


def _runs(graph: OrtGraph, hints: Overrides, constants: Mapping[str, Array], states: Mapping[str, str]) -> bool:
    """Whether the graph runs with these rows, and each of these states keeps its shape."""
    try:
        rows = find_rows(graph, hints)
        shapes = graph.shapes(rows, constants, 1)
    except StepwellError:
        return False
    return all(rows[before].shape(1) == shapes[after] for before, after in states.items())


def _likely_lengths(model: onnx.ModelProto) -> list[int]:
    """Return lengths that a row may have: small ones, those of audio frames, and those of the weights."""
    weights = {int(length) for tensor in model.graph.initializer for length in tensor.dims}
    return sorted({*range(1, 65), *_FRAMES, *(length for length in weights if 1 < length <= max(_FRAMES))})


def try_rows(graph: OrtGraph, rows: Mapping[str, Row], constants: Mapping[str, Array]) -> tuple[Shapes, Shapes | None]:
    """Return the outputs' shapes for one row, and for two rows if the graph takes two."""
    one = graph.shapes(rows, constants, 1)
    if any(row.batch_axis is None for row in rows.values()):
        return one, None
    try:
        return one, graph.shapes(rows, constants, 2)
    except ModelLoadError:
        return one, None
