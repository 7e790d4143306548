"""A caller's arrays as the model declares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from model_export.manifest import Array
from service.client.results import ClientError

Inputs = ArrayLike | Mapping[str, ArrayLike]
"""An array for a model with one input, or one per input by name; anything that NumPy makes an array of."""

_TAKES = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}  # dtype kinds, as the service takes values in JSON


def cast_inputs(x: Inputs, dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, Array]:
    """Return each input as an array of the declared dtype; names and shapes are the service's to check.

    Args:
        x: The caller's arrays.
        dtypes: What the model declares, by input.

    Raises:
        ClientError: `bad_input`: no array, or its values are not of the declared type.
    """
    if not isinstance(x, Mapping):
        if len(dtypes) != 1:
            _refuse(f"There is one array for the inputs {', '.join(dtypes)}.", "Give a dict with an array for each.")
        x = {next(iter(dtypes)): x}
    return {name: _cast(value, dtypes.get(name), f"Input {name!r}") for name, value in x.items()}


def stack(rows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Return one column per input, with the streams in front: `(N, *row)`.

    Raises:
        ClientError: `bad_input`: the rows have different names or shapes.
    """
    shapes = [{name: array.shape for name, array in row.items()} for row in rows]
    other = next((shape for shape in shapes if shape != shapes[0]), None)
    if other is not None:
        _refuse(f"The inputs of one stream have shapes {shapes[0]}, those of another {other}.", "Give all the same.")
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _cast(value: ArrayLike, dtype: np.dtype[Any] | None, what: str) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as exc:
        _refuse(f"{what} is no array: {exc}.", "Give rows of equal length.")
    if dtype is None or array.dtype == dtype:
        return array
    if array.dtype.kind not in _TAKES.get(dtype.kind, ""):
        _refuse(f"{what} has dtype {array.dtype}; the model takes {dtype}.", f"Convert it: `x.astype({dtype.name!r})`.")
    if dtype.kind in "iu" and array.size:
        limits, least, most = np.iinfo(dtype), int(array.min()), int(array.max())
        if least < limits.min or most > limits.max:
            _refuse(f"{what} has values from {least} to {most}; {dtype} holds {limits.min} to {limits.max}.", "")
    with np.errstate(over="ignore"):  # what becomes infinite is refused by the service, with its index
        return array.astype(dtype)


def _refuse(problem: str, fix: str) -> NoReturn:
    raise ClientError("bad_input", problem, fix=fix)
