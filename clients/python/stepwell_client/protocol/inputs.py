"""Conversion of a caller's arrays to the dtypes that the model declares, and to the values of a msgpack body."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from operator import index
from typing import Any, NoReturn

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from stepwell_client.errors import ClientError
from stepwell_client.protocol.decoding import TensorInfo
from stepwell_client.wire.formats import MSGPACK, Array, encode_tensors

Inputs = ArrayLike | Mapping[str, ArrayLike | None]
"""One array for a model with one input, or an array per input name; anything that `numpy.asarray` accepts. None is a
missing number, or an input that is left out."""

Source = tuple[str, int | Iterable[int]]
"""The id of a log and the position of a timestep in it; for a chunk, a position for each timestep."""

_CASTABLE = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}  # accepted dtype kinds; the service's rules for JSON values


def cast_inputs(x: Inputs, dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, Array]:
    """Return each input as an array of the declared dtype; the service checks names and shapes.

    Args:
        x: The caller's arrays.
        dtypes: The declared dtypes by input name.

    Raises:
        ClientError: `bad_input`: not an array, or its values do not fit the declared dtype.
    """
    if not isinstance(x, Mapping):
        if len(dtypes) != 1:
            _fail(f"Found one array for the inputs {', '.join(dtypes)}.", "Give a dict with an array for each input.")
        x = {next(iter(dtypes)): x}
    given = {name: value for name, value in x.items() if value is not None}  # None is an input that is left out
    return {name: _cast(value, dtypes.get(name), f"Input {name!r}") for name, value in given.items()}


def check_row(row: Mapping[str, Array], declared: Mapping[str, TensorInfo]) -> None:
    """Check names and shapes of one stream's inputs, so that they can be sent in the columns of a request.

    Raises:
        ClientError: `bad_input`: an input is not the model's, is left out, or has another shape.
    """
    if unknown := sorted(row.keys() - declared.keys()):
        _fail(f"The model has no input {unknown[0]!r}; it has {', '.join(declared)}.", "Correct the name.")
    for name, spec in declared.items():
        if name not in row:
            if spec.missing != "nan":
                _fail(f"Input {name!r} is missing.", "Give it; this model takes no missing values for it.")
        elif row[name].shape != tuple(spec.shape):
            _fail(
                f"Input {name!r} has shape {list(row[name].shape)}; one timestep has {spec.shape}.",
                "Give one timestep for each stream.",
            )


def stack(rows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Return one array per input, with the streams as axis 0: `(N, *row)`; NaN in a row that leaves an input out.

    Args:
        rows: What `check_row` lets pass.
    """
    if any(row.keys() != rows[0].keys() for row in rows):
        known = {name: array for row in rows for name, array in row.items()}
        missing = {name: np.full_like(array, np.nan) for name, array in known.items()}
        rows = [{**missing, **row} for row in rows]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def packed(inputs: Mapping[str, Array]) -> dict[str, Any]:
    """Return arrays encoded for a msgpack body."""
    return encode_tensors(inputs, MSGPACK)


def source_document(source: Source) -> dict[str, Any]:
    """Return a source as a field of a body; the service checks what its values are.

    Raises:
        ClientError: `bad_request`: it is not an id with positions.
    """
    if not isinstance(source, tuple | list) or len(source) != 2:
        raise ClientError(
            "bad_request",
            f"The source is {source!r:.80}; expected the id of a log and a position in it, or positions.",
            fix='Give `source=("orders/3", 1041)`, for a chunk `source=("orders/3", [1041, 1042])`.',
        )
    source_id, at = source
    at = _plain(at) if hasattr(at, "tolist") else at  # an array without axes cannot be iterated over
    return {"id": source_id, "at": [*at] if isinstance(at, Iterable) and not isinstance(at, str) else at}


def encode_body(document: Mapping[str, Any]) -> bytes:
    """Encode the document of a request in msgpack; scalars of NumPy and PyTorch, and what has `__index__`, are numbers.

    Raises:
        ClientError: `bad_request`: a value cannot be encoded.
    """
    try:
        return _ENCODER.encode(document)
    except (TypeError, ValueError, OverflowError) as exc:
        raise ClientError(
            "bad_request", f"A value of the call cannot be sent: {exc}.", fix="Give plain numbers, texts and arrays."
        ) from exc


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__index__"):
        return index(value)
    raise TypeError(f"it is {type(value).__name__}")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)


def _cast(value: ArrayLike, dtype: np.dtype[Any] | None, what: str) -> Array:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as exc:  # those of PyTorch's tensors are the latter
        _fail(f"{what} is not an array: {exc}.", "Give what `numpy.asarray` accepts, with rows of equal length.")
    if dtype is None or array.dtype == dtype:
        return array
    if array.dtype == object and dtype.kind == "f" and any(value is None for value in array.flat):
        array = _with_missing_values(array, what)
    if array.dtype.kind not in _CASTABLE.get(dtype.kind, ""):
        _fail(f"{what} has dtype {array.dtype}; the model takes {dtype}.", f"Convert it: `x.astype({dtype.name!r})`.")
    if dtype.kind in "iu" and array.size:
        limits, low, high = np.iinfo(dtype), int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            _fail(f"{what} has values from {low} to {high}; {dtype} holds {limits.min} to {limits.max}.", "")
    with np.errstate(over="ignore"):  # the service rejects a value that becomes infinite, and gives its index
        return array.astype(dtype)


def _with_missing_values(array: Array, what: str) -> Array:
    """Return an array of numbers and `None`, which stands for a missing value, as floats."""
    for value in array.flat:
        if value is not None and (not isinstance(value, Real | Decimal) or isinstance(value, bool)):
            _fail(f"{what} has {value!r:.80}; expected numbers.", "Give numbers, and None for missing values.")
    return array.astype(np.float64)


def _fail(problem: str, fix: str) -> NoReturn:
    raise ClientError("bad_input", problem, fix=fix)
