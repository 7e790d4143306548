"""Inputs to arrays the fast way: a typed decoder made for the model's inputs, then NumPy.

It takes sound inputs only and never says what is wrong: whatever it raises, `tensors` reads again and tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw, Struct

from model_export.manifest import Array, InputSpec
from service.wire.formats import JSON, Format
from service.wire.tensors import is_finite

NOT_SOUND = (ValueError, OverflowError, TypeError, RecursionError)
"""What the fast way raises on a body that is not sound. msgspec's errors and UnicodeDecodeError are ValueErrors,
and NumPy's of ragged lists; integers out of range are OverflowErrors."""

_LEAF: dict[str, type] = {"b": bool, "i": int, "u": int, "f": float}


class UnsoundError(ValueError):
    """The fast way does not take this."""


class _Packed(Struct, forbid_unknown_fields=True, gc=False):
    """A tensor in msgpack."""

    d: str
    s: list[int]
    b: bytes


class FastInputs:
    """Decodes the `inputs` of one model's bodies."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        """Prepare for the declared inputs; decoders are made when first needed."""
        self._specs = [(spec.name, np.dtype(spec.dtype), spec.row_shape) for spec in specs]
        self._colons = sum(1 + spec.name.count(":") for spec in specs)
        self._decoders: dict[tuple[Format, int], tuple[Any, type[Struct]]] = {}

    def read(self, raw: Raw, form: Format, lead: int) -> tuple[dict[str, Array], int]:
        """Decode inputs that have `lead` axes in front of the row.

        Args:
            raw: The value of `inputs`, as it stands in the body.
            form: The body's format.
            lead: 0: a step, which gets a leading axis of 1 at once; 1: a chunk or columns; 2: columns of chunks.

        Returns:
            The arrays with at least one leading axis, and how many colons the names brought into the body.

        Raises:
            ValueError: And the others of `NOT_SOUND`.
        """
        decoder, struct = self._decoders.get((form, lead)) or self._decoder(form, lead)
        value = decoder.decode(raw)
        if isinstance(value, struct):
            # Struct fields in their order are the declared inputs in theirs.
            values, colons = msgspec.structs.astuple(value), self._colons
        else:
            values, colons = (value,), 0
        arrays = {}
        for (name, dtype, row), item in zip(self._specs, values, strict=True):
            if type(item) is _Packed:
                array = _unpack(item, dtype) if lead else _unpack(item, dtype)[None]
            else:
                array = _array(item if lead else [item], dtype)
            if array.shape[lead or 1 :] != row or array.ndim != (lead or 1) + len(row) or not is_finite(array):
                raise UnsoundError
            arrays[name] = array
        return arrays, colons

    def _decoder(self, form: Format, lead: int) -> tuple[Any, type[Struct]]:
        kinds = [_nested(_LEAF[dtype.kind], lead + len(row)) for _, dtype, row in self._specs]
        fields = [(f"i{i}", kind if form is JSON else _Packed | kind) for i, kind in enumerate(kinds)]
        names = {f"i{i}": name for i, (name, _, _) in enumerate(self._specs)}
        struct = msgspec.defstruct("Inputs", fields, rename=names, forbid_unknown_fields=True, gc=False)
        # A model with one input also takes that input alone; packed, it cannot be told from an object by its type,
        # and goes the slow way.
        kind: Any = struct if len(kinds) > 1 else struct | kinds[0]
        module = msgspec.json if form is JSON else msgspec.msgpack
        self._decoders[form, lead] = made = (module.Decoder(kind), struct)
        return made


def _nested(leaf: Any, depth: int) -> Any:
    return leaf if depth == 0 else list[_nested(leaf, depth - 1)]  # type: ignore[misc] # built at run time


def _unpack(packed: _Packed, dtype: np.dtype[Any]) -> Array:
    if packed.d != dtype.name or min(packed.s, default=0) < 0 or len(packed.b) != math.prod(packed.s) * dtype.itemsize:
        raise UnsoundError
    if dtype.kind == "b" and packed.b.translate(None, b"\x00\x01"):
        raise UnsoundError
    return np.frombuffer(packed.b, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(packed.s)


@np.errstate(over="ignore")  # what becomes infinite is found afterwards, without a warning
def _array(values: Any, dtype: np.dtype[Any]) -> Array:
    return np.array(values, dtype)
