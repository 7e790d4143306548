"""`InputColumn`: one input of the model, made of fields of a message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

import numpy as np

from stepwell.addons.connect.mapping.decoding import TextValue
from stepwell.addons.connect.mapping.paths import MISSING, FieldPath
from stepwell.addons.connect.messages import BadMessageError, ConnectUsageError
from stepwell.addons.text_values import is_missing, preview, value_of
from stepwell_client.wire.texts import counted
from stepwell_export.runtime.manifest import Array, InputSpec

_NUMBERS: Final = {"f": (int, float), "i": (int,), "u": (int,), "b": (bool,)}
_NAMES: Final = {"f": "numbers", "i": "integers", "u": "integers", "b": "true or false"}


class InputColumn:
    """Reads the values of one input from decoded messages, and makes arrays of them.

    Attributes:
        spec: The input's declaration.
        dtype: Its dtype.
        size: Its numbers in one timestep.
        parts: The fields, in order; numbers are constants.
        paths: Those of them that are fields.
        types: The types of its values in a message.
        may_be_missing: A value that is missing is NaN.
    """

    def __init__(self, spec: InputSpec, paths: Sequence[str | int | float] | None) -> None:
        """Create a column.

        Args:
            spec: The input's declaration.
            paths: The fields, in order; numbers are constants. None: the field with the input's name.

        Raises:
            ConnectUsageError: There are no paths, or their number cannot fit the input's shape.
        """
        self.spec = spec
        self.dtype = np.dtype(spec.dtype)
        self.size = math.prod(spec.shape)
        given = [spec.name] if paths is None else list(paths)
        if not given:
            raise ConnectUsageError(f"Input {spec.name!r} has no fields.", fix="Give it at least one path.")
        self.parts = [FieldPath(one) if isinstance(one, str) else one for one in given]
        self.paths = [part for part in self.parts if isinstance(part, FieldPath)]
        if any(not isinstance(one, FieldPath) for one in self.parts) and len(self.parts) > self.size:
            raise ConnectUsageError(f"Input {spec.name!r} has {counted(len(given), 'value')}; it takes {self.size}.")
        self.may_be_missing = spec.missing == "nan"
        self.types = _NUMBERS[self.dtype.kind]

    def values_of(self, document: Any) -> Any:
        """Return the input's values in a message, for `stack`: nested lists of its shape, or raw bytes as an array.

        Raises:
            BadMessageError: A field is missing, or its type or shape is wrong.
        """
        if type(document) is bytes:
            return self._from_bytes(document)
        fields = {path: path.read(document) for path in self.paths}
        if self.paths and all(field is MISSING for field in fields.values()):
            raise BadMessageError("bad_input", self.paths[0].missing_in(document))
        found = [
            self._value(part, fields[part], document) if isinstance(part, FieldPath) else part for part in self.parts
        ]
        if len(found) == 1:
            value = found[0]
            if value is None and self.may_be_missing:
                return np.full(self.spec.shape, np.nan, self.dtype)
            if type(value) is not list and self.size == 1:
                value = _nest(value, len(self.spec.shape))
            self._check(value, self.spec.shape)
            return value
        flat = [one for value in found for one in (value if type(value) is list else (value,))]
        self._check(flat, (self.size,))
        return flat if len(self.spec.shape) == 1 else np.array(flat, object).reshape(self.spec.shape).tolist()

    def stack(self, rows: Sequence[Any]) -> tuple[Array, dict[int, BadMessageError]]:
        """Return one array `(rows, *row)` of the declared dtype, and the errors of the rows that do not fit it.

        Args:
            rows: What `values_of` returned.
        """
        shape, errors = (len(rows), *self.spec.shape), dict[int, BadMessageError]()
        try:
            with np.errstate(over="ignore"):
                stacked = self._stacked(rows).reshape(shape)
        except (OverflowError, ValueError, TypeError):
            stacked = np.zeros(shape, self.dtype)
            for i, row in enumerate(rows):
                try:
                    with np.errstate(over="ignore"):
                        stacked[i] = np.array(row, dtype=self.dtype).reshape(self.spec.shape)
                except (OverflowError, ValueError, TypeError) as exc:
                    errors[i] = BadMessageError("bad_input", f"input {self.spec.name!r} is not {self.dtype}: {exc}")
        if self.dtype.kind == "f":
            good = np.isfinite(stacked) | np.isnan(stacked) if self.may_be_missing else np.isfinite(stacked)
            for i in map(int, np.flatnonzero(~good.reshape(len(rows), -1).all(axis=1))):
                reason = f"input {self.spec.name!r} has a value that is not a finite {self.dtype}"
                errors.setdefault(i, BadMessageError("non_finite", reason))
        return stacked, errors

    def _stacked(self, rows: Sequence[Any]) -> Array:
        """Return the values of all rows as an array with as many values, of any shape.

        Raises:
            OverflowError, ValueError, TypeError: A value does not fit the dtype.
        """
        is_flat = len(self.spec.shape) == 1 and self.size > 1 and not self.may_be_missing
        if is_flat and rows and type(rows[0]) is not np.ndarray:  # in half of the time, as NumPy looks for no shape
            return np.fromiter(chain.from_iterable(rows), self.dtype, self.size * len(rows))
        return np.array(rows, dtype=self.dtype)

    def _value(self, part: FieldPath, field: Any, document: Any) -> Any:
        if type(field) is TextValue:
            return self._number(part, field)
        if type(field) is list and field and type(field[0]) is TextValue:  # a whole line of CSV
            return [self._number(part, one) for one in field]
        if field is not MISSING:
            return field
        if self.may_be_missing:
            return None
        raise BadMessageError("bad_input", part.missing_in(document))

    def _number(self, part: FieldPath, text: str) -> float | bool | None:
        """Return the value of a text for this input; None: it stands for a missing value."""
        if is_missing(text):
            if self.may_be_missing:
                return None
            raise BadMessageError(
                "bad_input", f"the field {part.text!r} is {text!r}, a missing value; expected {_NAMES[self.dtype.kind]}"
            )
        number = value_of(text)
        if number is None:
            raise BadMessageError(
                "bad_input", f"the field {part.text!r} is {preview(text)}; expected {_NAMES[self.dtype.kind]}"
            )
        if self.dtype.kind == "b" and number in (0, 1):
            return bool(number)
        if self.dtype.kind in "iu" and isinstance(number, float) and number.is_integer():
            return int(number)
        return number

    def _check(self, value: Any, shape: Sequence[int]) -> None:
        if shape:
            if type(value) is not list or len(value) != shape[0]:
                found = counted(len(value), "value") if type(value) is list else preview(value)
                raise BadMessageError(
                    "bad_input",
                    f"input {self.spec.name!r} has {found} where shape {[*self.spec.shape]} needs {shape[0]}",
                )
            for one in value:
                if len(shape) > 1 or type(one) not in self.types:  # else it is fine: most values are
                    self._check(one, shape[1:])
        elif type(value) not in self.types and not (value is None and self.may_be_missing):
            expected = _NAMES[self.dtype.kind]
            raise BadMessageError("bad_input", f"input {self.spec.name!r} has {preview(value)}; expected {expected}")

    def _from_bytes(self, body: bytes) -> Array:
        expected = self.size * self.dtype.itemsize
        if len(body) != expected:
            raise BadMessageError(
                "bad_input",
                f"the message has {len(body)} bytes; {self.dtype} of shape {[*self.spec.shape]} has {expected}",
            )
        return np.frombuffer(body, self.dtype.newbyteorder("<")).reshape(self.spec.shape)


def make_columns(
    specs: Sequence[InputSpec], paths: dict[str, list[str | int | float]], *, raw: bool
) -> dict[str, InputColumn]:
    """Return a column for each input of the model.

    Args:
        specs: The model's inputs.
        paths: The configured fields by input.
        raw: Messages are the bytes of one array.

    Raises:
        ConnectUsageError: An input is unknown, or raw messages cannot have all inputs.
    """
    names = [spec.name for spec in specs]
    for name in paths:
        if name not in names:
            raise ConnectUsageError(f"The model has no input {name!r}; it has {', '.join(names)}.")
    if raw and len(specs) != 1:
        raise ConnectUsageError(f"Raw messages hold one array; the model has the inputs {', '.join(names)}.")
    return {spec.name: InputColumn(spec, paths.get(spec.name)) for spec in specs}


def _nest(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value
