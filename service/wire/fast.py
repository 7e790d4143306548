"""Inputs to arrays the fast way: a typed decoder made for the model's inputs, then NumPy.

It takes sound inputs only and never says what is wrong: whatever it raises, `tensors` reads again and tells.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw, Struct
from msgspec.structs import astuple as _astuple

from model_export.manifest import Array, InputSpec
from service.wire.bodies import Create, Seq, StepBody
from service.wire.formats import JSON, Format
from service.wire.names import decode_state_id, is_state_id
from service.wire.tensors import is_finite

NOT_SOUND = (ValueError, OverflowError, TypeError, RecursionError, struct.error)
"""What the fast way raises on a body that is not sound. msgspec's errors and UnicodeDecodeError are ValueErrors,
and NumPy's of ragged lists; integers out of range are OverflowErrors, and numbers that do not fit struct's errors."""

_LEAF: dict[str, type] = {"b": bool, "i": int, "u": int, "f": float}
_PACK_CODES = {
    "float16": "e", "float32": "f", "float64": "d", "bool": "?",
    "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
}  # fmt: skip


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
        decoder, named = self._decoders.get((form, lead)) or self._decoder(form, lead)
        value = decoder.decode(raw)
        if isinstance(value, named):
            # Struct fields in their order are the declared inputs in theirs.
            values, colons = _astuple(value), self._colons
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
        kind, inputs = _inputs_type(fields, names, alone=kinds[0])
        module = msgspec.json if form is JSON else msgspec.msgpack
        self._decoders[form, lead] = made = (module.Decoder(kind), inputs)
        return made


StepParts = tuple[tuple[bytes, ...], int | None, bytes | None, Create]
"""What the body of one timestep says: each input's bytes, in the order of their names, and `seq`, `after`, `create`."""


class FastStep:
    """Reads the whole JSON body of one timestep in one go: what nearly every request is."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        """Prepare for the declared inputs.

        Raises:
            ValueError: An input has a name that no field of a decoder can have.
        """
        specs = self._specs = sorted(specs, key=lambda spec: spec.name)
        fields = [
            (f"i{i}", _nested(_LEAF[np.dtype(spec.dtype).kind], len(spec.row_shape))) for i, spec in enumerate(specs)
        ]
        names = {f"i{i}": spec.name for i, spec in enumerate(specs)}
        kind, self._struct = _inputs_type(fields, names, alone=fields[0][1])
        self._packers = [row_packer(np.dtype(spec.dtype), spec.row_shape) for spec in specs]
        self._only = self._packers[0] if len(specs) == 1 else None
        self._colons = 1 + sum(1 + spec.name.count(":") for spec in specs)
        # None is the default of what was not given, and nothing that may be given.
        more = [("seq", Seq, None), ("after", str, None), ("create", Create, None)]
        envelope = msgspec.defstruct("Step", [("inputs", kind), *more], forbid_unknown_fields=True, gc=False)
        self._decode = msgspec.json.Decoder(envelope).decode

    def read(self, body: bytes) -> StepParts:
        """Return what the body says.

        Raises:
            ValueError: And the others of `NOT_SOUND`.
        """
        inputs, seq, after, create = _astuple(self._decode(body))
        if type(inputs) is self._struct:
            colons, values = self._colons, _astuple(inputs)
        else:
            colons, values = 1, (inputs,)
        if seq is not None:
            colons += 1
        if after is not None:
            colons, after = colons + 1, read_state_id(after)
        if create is None:
            create = "auto"
        else:
            colons += 1
        if body.count(b":") != colons or b"\\" in body:
            raise UnsoundError  # see demand_single_keys
        if self._only is not None:
            return (self._only(values[0]),), seq, after, create
        packed = [pack(value) for pack, value in zip(self._packers, values, strict=True)]
        return tuple(packed), seq, after, create

    def body(self, parts: StepParts) -> StepBody:
        """Return parts as a body like any other; its arrays are read-only."""
        packed, seq, after, create = parts
        arrays = {
            spec.name: np.ndarray((1, *spec.row_shape), spec.dtype, data)
            for spec, data in zip(self._specs, packed, strict=True)
        }
        return StepBody(arrays, 1, False, seq, after, create, "all")


def read_state_id(text: str) -> bytes:
    """Return the 16 bytes of a state id.

    Raises:
        UnsoundError: It is none.
    """
    if not is_state_id(text):
        raise UnsoundError
    return decode_state_id(text)


def demand_single_keys(body: bytes, colons: int) -> None:
    """Be sure that no key stands twice, by counting colons: each key brings one, and no number brings any.

    msgspec takes the last of two equal keys without a word. A backslash could write a colon in another way.
    """
    if body.count(b":") != colons or b"\\" in body:
        raise UnsoundError


def _inputs_type(
    fields: Sequence[tuple[str, Any]], names: Mapping[str, str], *, alone: Any
) -> tuple[Any, type[Struct]]:
    """Return the type of `inputs`, and the struct of those that are named.

    A model with one input also takes that input `alone`, as lists; packed, it cannot be told from an object by its
    type, and goes the slow way.
    """
    named = msgspec.defstruct("Inputs", fields, rename=names, forbid_unknown_fields=True, gc=False)
    return (named if len(fields) > 1 else named | alone), named


def row_packer(dtype: np.dtype[Any], row: tuple[int, ...]) -> Callable[[Any], bytes]:
    """Return what makes the bytes of a decoded row, or raises one of `NOT_SOUND` where it does not fit.

    What is not finite does not fit.
    """
    code = _PACK_CODES.get(dtype.name)
    if code is None or len(row) != 1:
        return lambda item: _checked(_array(item, dtype), row).tobytes()
    pack = struct.Struct(f"={row[0]}{code}").pack
    # pack refuses what becomes infinite, and JSON has no other numbers that are not finite
    return lambda item: pack(*item)


def _checked(array: Array, shape: tuple[int, ...]) -> Array:
    if array.shape != shape or not is_finite(array):
        raise UnsoundError
    return array


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
