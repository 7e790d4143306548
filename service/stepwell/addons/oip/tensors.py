"""`DeclaredTensor`: decodes and checks a tensor of the Open Inference Protocol, from JSON or raw bytes, to rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from stepwell.addons.oip.errors import bad_request, format_shape
from stepwell.codec.strict.parse import parse
from stepwell.codec.strict.tensors import (
    check_finite,
    is_finite,
    may_be_missing,
    missing_values,
    packed_rows,
    read_tensor,
    unpack,
)
from stepwell.codec.typed_decoder import DECODE_ERRORS, row_packer
from stepwell_client.wire.formats import JSON
from stepwell_export.runtime.manifest import Array, TensorSpec

DATATYPES: Final = {
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
}  # fmt: skip
"""The protocol's name of each NumPy dtype."""

_MAX_ROWS: Final = 2**31
_FLAT: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    "b": msgspec.json.Decoder(list[bool]),
    "f": msgspec.json.Decoder(list[float]),
    "i": msgspec.json.Decoder(list[int]),
    "u": msgspec.json.Decoder(list[int]),
}


class DeclaredTensor:
    """A tensor that a model declares, with everything that does not depend on the request precomputed.

    Attributes:
        name: Its name.
        datatype: The protocol's name of its dtype.
    """

    __slots__ = (
        "_dtype",
        "_flat",
        "_model",
        "_one",
        "_pack",
        "_row",
        "_row_bytes",
        "_spec",
        "_what",
        "datatype",
        "name",
    )

    def __init__(self, spec: TensorSpec, model: str) -> None:
        """Precompute the checks of a tensor."""
        self.name = spec.name
        self.datatype = DATATYPES[spec.dtype]
        self._spec = spec
        self._model = model
        self._dtype = np.dtype(spec.dtype)
        self._flat = _FLAT[self._dtype.kind].decode
        self._pack = row_packer(self._dtype, (spec.row_size,))
        self._row = spec.row_shape
        self._row_bytes = spec.row_bytes
        self._one = [1, *spec.row_shape]
        self._what = f"Input {spec.name!r}"

    @property
    def may_be_missing(self) -> bool:
        """Whether the tensor may be left out of a request."""
        return may_be_missing(self._spec)

    def is_kind_of(self, array: Array | None) -> bool:
        """Whether an array, `(rows, *row)`, is such a tensor; None: there is no array."""
        return array is not None and array.shape[1:] == self._row and array.dtype == self._dtype

    def missing(self, rows: int) -> Sequence[bytes]:
        """Return the rows of a request that leaves the tensor out."""
        return [missing_values(self._spec, ()).tobytes()] * rows

    def rows(self, shape: Sequence[int]) -> int:
        """Return the batch size in a shape, its first dimension.

        Raises:
            TritonError: The shape is not the declared one.
        """
        if shape == self._one:
            return 1
        if len(shape) != len(self._one) or shape[1:] != self._one[1:] or not 0 < shape[0] < _MAX_ROWS:
            bad_request(
                f"unexpected shape for input '{self.name}' for model '{self._model}'. Expected "
                f"{format_shape([-1, *self._row])}, got {format_shape(shape)}. The first dimension is the batch.",
                code="bad_input",
            )
        return shape[0]

    def rows_of_bytes(self, size: int) -> int:
        """Return the batch size of so many bytes.

        Raises:
            TritonError: They are not a whole number of rows.
        """
        rows, rest = divmod(size, max(self._row_bytes, 1))
        if rest or not rows:
            self._reject_size(max(rows, 1), size)
        return rows

    def from_bytes(self, body: bytes, offset: int, size: int, rows: int) -> Sequence[bytes]:
        """Return the rows that are `size` bytes at an offset of the body.

        Raises:
            ServiceError: They are too few or too many, not booleans, or not finite.
        """
        if size != rows * self._row_bytes:
            self._reject_size(rows, size)
        if len(body) < offset + size:
            missing = offset + size - len(body)
            bad_request(
                f"unexpected size for input '{self.name}', expecting {missing} additional bytes for model "
                f"'{self._model}'"
            )
        shape = (rows, *self._row)
        if self._dtype.kind == "b":
            packed = {"d": "bool", "s": list(shape), "b": body[offset : offset + size]}
            return packed_rows(unpack(packed, self._spec, shape, self._what))
        dtype = self._dtype.newbyteorder("<")
        array: Array = np.ndarray(shape, dtype, body, offset)
        if array.dtype != self._dtype:
            array = array.astype(self._dtype)
        return packed_rows(check_finite(array, self._spec, self._what))

    def from_json(self, data: msgspec.Raw, rows: int) -> Sequence[bytes]:
        """Return the rows whose values are these, flat or nested.

        Raises:
            ServiceError: Their number, shape or type is not the declared one, or one is not finite.
        """
        shape = (rows, *self._row)
        try:
            values = self._flat(data)
            if rows == 1:
                return [self._pack(values)]
            with np.errstate(over="ignore"):  # values that overflow are found by `is_finite`, without a warning
                array = np.array(values, self._dtype).reshape(shape)
            if is_finite(array):
                return packed_rows(array)
        except DECODE_ERRORS:
            pass
        value = parse(bytes(data), JSON)  # the strict parser accepts it, or gives the exact error
        if isinstance(value, list) and not (value and isinstance(value[0], list)):
            flat = self._spec.model_copy(update={"shape": [rows * self._spec.row_size], "graph_shape": None})
            return packed_rows(read_tensor(value, flat, (), self._what).reshape(shape))
        return packed_rows(read_tensor(value, self._spec, (rows,), self._what))

    def _reject_size(self, rows: int, found: int) -> None:
        bad_request(
            f"input byte size mismatch for input '{self.name}' for model '{self._model}'. Expected "
            f"{rows * self._row_bytes}, got {found}",
            code="bad_input",
        )


def raw_bytes(array: Array) -> bytes:
    """Return an array's values as raw bytes of the protocol: little-endian, row-major."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
