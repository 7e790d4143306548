"""Rules of padding and of `x[...]`, along any axis but that of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepwell_export.keras.rule_registry import Call, op_rule, to_array
from stepwell_export.keras.value import Value

_TO_THE_END = np.iinfo(np.int64).max
WINDOW_FIX = (
    "A model that was trained on windows of n timesteps can be exported as it is: call it on "
    "ZeroPadding1D((n - 1, 0))(inputs)[:, -n:], where inputs = keras.Input((None, features))."
)


@op_rule("Pad")
def pad(call: Call) -> Value:
    """`ops.pad` with a constant."""
    x, layer = call.value, call.layer
    if layer.mode != "constant":
        raise call.refuse(f"mode={layer.mode!r} repeats what is there; expected 'constant'")
    pairs = np.broadcast_to(to_array(layer.pad_width), (x.rank, 2)).tolist()
    if pairs[0] != [0, 0]:
        raise call.refuse("it pads the batch axis, which adds streams")
    value = call.kwargs.get("constant_values", call.args[1] if len(call.args) > 1 else None)
    fill = call.constant(0 if value is None else to_array(value), x.dtype)
    row = tuple(None if n is None else n + low + high for n, (low, high) in zip(x.row, pairs[1:], strict=True))
    ends = [low for low, _ in pairs] + [high for _, high in pairs]
    return x.like(call.op("Pad", x, call.graph.ints(ends), fill), row=row)


@op_rule("GetItem")
def get_item(call: Call) -> Value:
    """A part of each axis."""
    whole = x = call.value
    keys = _keys(call, x, call.args[1])
    if keys.pop(0) != slice(None):
        raise call.refuse("it picks rows of the batch, which mixes streams")
    x = sliced(call, x, dict(enumerate((_as_slice(key) for key in keys if key is not None), 1)))
    dropped = [place for place, key in enumerate((key for key in keys if key is not None), 1) if _is_number(key)]
    if dropped:
        x = call.squeezed(x, dropped)
    added = [place for place, key in enumerate((key for key in keys if not _is_number(key)), 1) if key is None]
    y = call.unsqueezed(x, added) if added else x.like(x.name)
    call.graph.cut_from.setdefault(y.name, call.graph.cut_from.get(whole.name, whole.name))
    return y


def _is_number(key: Any) -> bool:
    return isinstance(key, int | np.integer)


def _as_slice(key: Any) -> slice:
    if not _is_number(key):
        found: slice = key
        return found
    return slice(int(key), int(key) + 1 or None)


def _keys(call: Call, x: Value, key: Any) -> list[Any]:
    """Return one key for each axis; new axes are None among them."""
    keys = list(key) if isinstance(key, tuple | list) else [key]
    if any(not isinstance(k, int | np.integer | slice) and k is not None and k is not Ellipsis for k in keys):
        raise call.refuse(f"its index {key} is not made of numbers and slices")
    at = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    named = [k for k in keys if k is not Ellipsis and k is not None]
    return keys[:at] + [slice(None)] * (x.rank - len(named)) + keys[at + 1 :]


def sliced(call: Call, x: Value, parts: Mapping[int, slice]) -> Value:
    """Return a part of each of some axes."""
    cut: list[tuple[int, int, int, int]] = []
    row = list(x.row)
    for axis, given in parts.items():
        size = x.row[axis - 1]
        from_its_end = _from_its_end(call, given) if size is None else None
        call.graph.is_cut |= from_its_end is not None
        part = from_its_end if from_its_end is not None and call.graph.keeps_ends else given
        if part == slice(None):
            continue
        if size is None:
            row[axis - 1] = _length(part, call.graph.length)
            step = part.step or 1
            start = part.start if part.start is not None else (0 if step > 0 else -1)
            stop = part.stop if part.stop is not None else (_TO_THE_END if step > 0 else -_TO_THE_END)
            cut.append((start, stop, axis, step))
            continue
        places = range(size)[part]
        row[axis - 1] = len(places)
        if places.step < 0:
            x = picked(call, x, axis, places)
        elif places != range(size):
            cut.append((places.start, places.stop, axis, places.step))
    if cut:
        x = x.like(call.op("Slice", x, *(call.graph.ints(list(ends)) for ends in zip(*cut, strict=True))))
    return x.like(x.name, row=tuple(row))


def _from_its_end(call: Call, part: slice) -> slice | None:
    """Return a cut off the front of a sequence of declared length as counted from its end; None: it is another cut."""
    graph, start = call.graph, part.start or 0
    if graph.length is None or start <= 0 or part.step not in {None, 1}:
        return None
    length = call.layer.input.shape[1] or graph.length  # padding and convolution change it
    stop = None if part.stop is None or part.stop >= length else part.stop
    return None if start >= length or (stop is not None and stop >= 0) else slice(start - length, stop)


def _length(part: slice, length: int | None) -> int | None:
    """Return how many timesteps a part has; None: that follows from how many there are."""
    start, stop = part.start or 0, part.stop
    if part.step not in {None, 1}:
        return None
    if stop is None or stop == length:
        return -start if start < 0 else None
    return max(stop - start, 0) if (start < 0) == (stop < 0) else None


def picked(call: Call, x: Value, axis: int, places: Sequence[int]) -> Value:
    """Return what stands at some places of an axis, in their order."""
    row = tuple(len(places) if i == axis else dim for i, dim in enumerate(x.row, 1))
    return x.like(call.op("Gather", x, call.graph.ints(places), axis=axis), row=row)
