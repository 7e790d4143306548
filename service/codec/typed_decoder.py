"""Inputs to arrays the fast way: a typed decoder made for the model's inputs, then NumPy.

It takes sound inputs only and never says what is wrong: whatever it raises, `tensors` reads again and tells.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw, Struct
from msgspec.structs import astuple as _astuple

from model_export.manifest import Array, InputSpec
from service.codec.envelopes import Seq, StepBody
from service.codec.formats import JSON, Format
from service.codec.strict_tensors import is_finite
from service.ids import decode_state_id, is_state_id
from service.types import Create

DECODE_ERRORS = (ValueError, OverflowError, TypeError, RecursionError, struct.error)
"""What the fast way raises on a body that is not sound. msgspec's errors and UnicodeDecodeError are ValueErrors,
and NumPy's of ragged lists; integers out of range are OverflowErrors, and numbers that do not fit struct's errors."""

_LEAF: dict[str, type] = {"b": bool, "i": int, "u": int, "f": float}
_PACK_CODES = {
    "float16": "e", "float32": "f", "float64": "d", "bool": "?",
    "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
}  # fmt: skip


class NotTypedError(ValueError):
    """The fast way does not take this."""


class _PackedArray(Struct, forbid_unknown_fields=True, gc=False):
    """A tensor in msgpack."""

    d: str
    s: list[int]
    b: bytes


_Decoders = tuple[Callable[[Raw], Any], Callable[[Raw], Any] | None]
"""What decodes inputs by their names; and for a model with one input, that input alone, as lists: packed it could not
be told from an object. A union of both would take half as long again to decode."""


class TypedInputsDecoder:
    """Decodes the `inputs` of one model's bodies."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        """Prepare for the declared inputs; decoders are made when first needed."""
        self._specs = [(spec.name, np.dtype(spec.dtype), spec.row_shape) for spec in specs]
        self._colons = sum(1 + spec.name.count(":") for spec in specs)
        self._decoders: dict[tuple[Format, int], _Decoders] = {}

    def read(self, raw: Raw, form: Format, lead: int) -> tuple[dict[str, Array], int]:
        """Decode inputs that have `lead` axes in front of the row.

        Args:
            raw: The value of `inputs`, as it stands in the body.
            form: The body's format.
            lead: 0: a step, which gets a leading axis of 1 at once; 1: a chunk or columns; 2: columns of chunks.

        Returns:
            The arrays with at least one leading axis, and how many colons the names brought into the body.

        Raises:
            ValueError: And the others of `DECODE_ERRORS`.
        """
        named, alone = self._decoders.get((form, lead)) or self._decoder(form, lead)
        try:
            # Struct fields in their order are the declared inputs in theirs.
            values, colons = _astuple(named(raw)), self._colons
        except msgspec.ValidationError:
            if alone is None:
                raise
            values, colons = (alone(raw),), 0
        arrays = {}
        for (name, dtype, row), item in zip(self._specs, values, strict=True):
            if type(item) is _PackedArray:
                array = _unpack(item, dtype) if lead else _unpack(item, dtype)[None]
            else:
                array = _array(item if lead else [item], dtype)
            if array.shape[lead or 1 :] != row or array.ndim != (lead or 1) + len(row) or not is_finite(array):
                raise NotTypedError
            arrays[name] = array
        return arrays, colons

    def _decoder(self, form: Format, lead: int) -> _Decoders:
        kinds = [_nested(_LEAF[dtype.kind], lead + len(row)) for _, dtype, row in self._specs]
        fields = [(f"i{i}", kind if form is JSON else _PackedArray | kind) for i, kind in enumerate(kinds)]
        names = {f"i{i}": name for i, (name, _, _) in enumerate(self._specs)}
        named = msgspec.defstruct("Inputs", fields, rename=names, forbid_unknown_fields=True, gc=False)
        module = msgspec.json if form is JSON else msgspec.msgpack
        alone = module.Decoder(kinds[0]).decode if len(kinds) == 1 else None
        self._decoders[form, lead] = made = module.Decoder(named).decode, alone
        return made


StepParts = tuple[tuple[bytes, ...], int | None, bytes | None, Create]
"""What the body of one timestep says: each input's bytes, in the order of their names, and `seq`, `after`, `create`."""


class TypedStepDecoder:
    """Reads the whole JSON body of one timestep in one go: what nearly every request is."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        """Prepare for the declared inputs.

        Raises:
            ValueError: An input has a name that no field of a decoder can have.
        """
        specs = self._specs = sorted(specs, key=lambda spec: spec.name)
        kinds = [_nested(_LEAF[np.dtype(spec.dtype).kind], len(spec.row_shape)) for spec in specs]
        names = {f"i{i}": spec.name for i, spec in enumerate(specs)}
        fields = [(f"i{i}", kind) for i, kind in enumerate(kinds)]
        self._named_inputs: Any = msgspec.defstruct(
            "Inputs", fields, rename=names, forbid_unknown_fields=True, gc=False
        )
        kinds = [self._named_inputs, kinds[0] if len(specs) == 1 else self._named_inputs]  # by its name, or alone
        self._decoders = [_step_decoder(kind) for kind in kinds]
        self._message_decoders = [_step_decoder(kind, of_feed=True) for kind in kinds]
        self._packers = [row_packer(np.dtype(spec.dtype), spec.row_shape) for spec in specs]
        self._single_input = self._packers[0] if len(specs) == 1 else None
        self._colons = 1 + sum(1 + spec.name.count(":") for spec in specs)
        self._may_hide_colons = any(":" in spec.name for spec in specs)

    def read(self, body: bytes) -> StepParts:
        """Return what the body says.

        Raises:
            ValueError: And the others of `DECODE_ERRORS`.
        """
        return self._parts(body, _decoded(self._decoders, body))

    def read_feed_message(self, message: bytes) -> tuple[str | None, Raw | None, StepParts]:
        """Return what a feed's message says that brings one timestep: its stream and its own name, if it has any.

        Raises:
            ValueError: And the others of `DECODE_ERRORS`.
        """
        if b"\\" in message:  # it could hide a colon
            raise NotTypedError
        asked = _decoded(self._message_decoders, message)
        stream, name, colons = asked.stream, asked.id, 0
        if stream is not None:
            colons += 1 + stream.count(":")
        if name is not None:
            colons += 1 + bytes(name).count(b":")
        return stream, name, self._parts(message, asked, colons)

    def _parts(self, body: bytes, asked: Any, colons: int = 0) -> StepParts:
        inputs = asked.inputs
        is_named = type(inputs) is self._named_inputs
        colons += self._colons if is_named else 1
        seq, after, create = asked.seq, asked.after, asked.create
        if seq is not None:
            colons += 1
        if after is not None:
            colons, after = colons + 1, read_state_id(after)
        if create is None:
            create = "auto"
        else:
            colons += 1
        # See demand_single_keys: where no key has a colon in it, a backslash can hide none.
        if body.count(b":") != colons or (self._may_hide_colons and b"\\" in body):
            raise NotTypedError
        if self._single_input is not None:
            return (self._single_input(inputs.i0 if is_named else inputs),), seq, after, create
        values = _astuple(inputs)
        return tuple([pack(value) for pack, value in zip(self._packers, values, strict=True)]), seq, after, create

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
        raise NotTypedError
    return decode_state_id(text)


def reject_duplicate_keys(body: bytes, colons: int) -> None:
    """Be sure that no key stands twice, by counting colons: each key brings one, and no number brings any.

    msgspec takes the last of two equal keys without a word. A backslash could write a colon in another way.
    """
    if body.count(b":") != colons or b"\\" in body:
        raise NotTypedError


def _step_decoder(inputs: Any, *, of_feed: bool = False) -> Callable[[bytes], Any]:
    """Return what decodes the JSON body of a step with such inputs, or the message of a feed."""
    # None is the default of what was not given, and nothing that may be given.
    more: list[tuple[str, Any, None]] = [("seq", Seq, None), ("after", str, None), ("create", Create, None)]
    if of_feed:
        more += [("stream", str, None), ("id", Raw, None)]
    kind = msgspec.defstruct("Step", [("inputs", inputs), *more], forbid_unknown_fields=True, gc=False)
    return msgspec.json.Decoder(kind).decode


def _decoded(decoders: Sequence[Callable[[bytes], Any]], body: bytes) -> Any:
    """Return what the likelier of two decoders makes of a body, or else the other one."""
    is_alone = body.find(b"{", 1) < 0  # a second object is most likely that of the inputs' names
    try:
        return decoders[is_alone](body)
    except msgspec.ValidationError:
        return decoders[not is_alone](body)


def row_packer(dtype: np.dtype[Any], row: tuple[int, ...]) -> Callable[[Any], bytes]:
    """Return what makes the bytes of a decoded row, or raises one of `DECODE_ERRORS` where it does not fit.

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
        raise NotTypedError
    return array


def _nested(leaf: Any, depth: int) -> Any:
    return leaf if depth == 0 else list[_nested(leaf, depth - 1)]  # type: ignore[misc] # built at run time


def _unpack(packed: _PackedArray, dtype: np.dtype[Any]) -> Array:
    if packed.d != dtype.name or min(packed.s, default=0) < 0 or len(packed.b) != math.prod(packed.s) * dtype.itemsize:
        raise NotTypedError
    if dtype.kind == "b" and packed.b.translate(None, b"\x00\x01"):
        raise NotTypedError
    return np.frombuffer(packed.b, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(packed.s)


@np.errstate(over="ignore")  # what becomes infinite is found afterwards, without a warning
def _array(values: Any, dtype: np.dtype[Any]) -> Array:
    return np.array(values, dtype)
