"""A graph that runs for its declared number of timesteps alone, for fewer too, by each likely reading of its axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Any

import onnx

from stepwell_export.streaming.axes.inputs import draw_input
from stepwell_export.streaming.axes.sizes import ROWS, trial_lengths
from stepwell_export.streaming.normal_form.load import Declared
from stepwell_export.streaming.normal_form.open_length import with_open_length
from stepwell_export.verify.onnx_original import InputLayout

_MOST_READINGS = 6


def opened_graphs(
    model: onnx.ModelProto, declared: Declared, time_axes: Mapping[str, int | None], length: int
) -> Iterator[tuple[onnx.ModelProto, Declared]]:
    """Yield the graph for `length` timesteps and fewer, with what its inputs then declare.

    Args:
        model: The graph, which takes `length` timesteps and no other number.
        declared: The declared size of every axis of every input.
        time_axes: The time axis that the user gave, by input; None: it has none.
        length: The declared number of timesteps.
    """
    options = [_axes(name, dims, time_axes, length) for name, dims in declared.items()]
    for chosen in islice(product(*options), _MOST_READINGS):
        axes = {name: axis for name, axis in zip(declared, chosen, strict=True) if axis is not None}
        if not axes:
            continue
        shorter = min(trial_lengths(length)[0], length - 1)
        full, short = (_drawn(model, declared, axes, steps) for steps in (length, shorter))
        opened = with_open_length(model, axes, length, full, short)
        if opened is not None:
            yield (
                opened,
                {
                    name: ["time" if axes.get(name) == axis else dim for axis, dim in enumerate(dims)]
                    for name, dims in declared.items()
                },
            )


def is_written(declared: Declared, time_axes: Mapping[str, int | None], length: int) -> bool:
    """Whether an input declares an axis that may be the time axis with that very length."""
    options = ((dims, _axes(name, dims, time_axes, length)[0]) for name, dims in declared.items())
    return any(axis is not None and dims[axis] == length for dims, axis in options)


def _axes(name: str, dims: list[Any], given: Mapping[str, int | None], length: int) -> list[int | None]:
    """Return what the time axis of an input may be: what is given, else an axis of that length, an open one, none."""
    if name in given:
        axis = given[name]
        return [None if axis is None or not dims else axis % len(dims)]
    free = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int)]
    written = [axis for axis, dim in enumerate(dims) if dim == length] if len(free) < 2 else []  # else a feature's size
    return [*(written or free[::-1]), None]


def _drawn(model: onnx.ModelProto, declared: Declared, axes: Mapping[str, int], steps: int) -> dict[str, Any]:
    """Return data for so many timesteps; axes that are open otherwise have several rows."""
    drawn = {}
    for value in model.graph.input:
        dims, axis = declared[value.name], axes.get(value.name)
        sizes = tuple(dim if isinstance(dim, int) else ROWS[0] for dim in dims)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        drawn[value.name] = draw_input(InputLayout(value.name, dtype, sizes, None, axis), ROWS[0], steps, 0, 0)
    return drawn
