"""Decodes inputs to arrays on the fast path: a typed decoder built for the model's inputs, then NumPy.

It accepts valid inputs only and gives no reason: `strict_tensors` decodes again whatever it rejects.
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
"""What the fast path raises for an invalid body. msgspec's errors, UnicodeDecodeError, and NumPy's for ragged lists are
ValueErrors; integers out of range are OverflowErrors, and numbers that do not fit are errors of struct."""

_LEAF: dict[str, type] = {"b": bool, "i": int, "u": int, "f": float}
_PACK_CODES = {
    "float16": "e", "float32": "f", "float64": "d", "bool": "?",
    "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
}  # fmt: skip


class NotTypedError(ValueError):
    """The fast path does not accept this body."""


class _PackedArray(Struct, forbid_unknown_fields=True, gc=False):
    """A tensor in msgpack."""

    d: str
    s: list[int]
    b: bytes


_Decoders = tuple[Callable[[Raw], Any], Callable[[Raw], Any] | None]
"""Decoders of `inputs` as an object by name and, for a model with one input, as a bare nested list (a bare packed
tensor would be ambiguous). A decoder of the union of both takes half as long again."""


class TypedInputsDecoder:
    """Decodes the `inputs` of one model's bodies."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        """Create it for the declared inputs; each decoder is created when it is first needed."""
        self._specs = [(spec.name, np.dtype(spec.dtype), spec.row_shape) for spec in specs]
        self._colons = sum(1 + spec.name.count(":") for spec in specs)
        self._decoders: dict[tuple[Format, int], _Decoders] = {}

    def read(self, raw: Raw, body_format: Format, lead: int) -> tuple[dict[str, Array], int]:
        """Decode inputs that have `lead` axes before those of the row.

        Args:
            raw: The encoded value of `inputs` in the body.
            body_format: The body's format.
            lead: 0: a step, to which a leading axis of 1 is added; 1: a chunk or columns; 2: columns of chunks.

        Returns:
            The arrays with at least one leading axis, and the number of colons in the body that belong to the names.

        Raises:
            ValueError: The inputs are not valid; likewise the others of `DECODE_ERRORS`.
        """
        named, alone = self._decoders.get((body_format, lead)) or self._decoder(body_format, lead)
        try:
            # The order of the struct's fields is that of the declared inputs.
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

    def _decoder(self, body_format: Format, lead: int) -> _Decoders:
        types = [_nested(_LEAF[dtype.kind], lead + len(row)) for _, dtype, row in self._specs]
        fields = [(f"i{i}", type_ if body_format is JSON else _PackedArray | type_) for i, type_ in enumerate(types)]
        names = {f"i{i}": name for i, (name, _, _) in enumerate(self._specs)}
        named = msgspec.defstruct("Inputs", fields, rename=names, forbid_unknown_fields=True, gc=False)
        module = msgspec.json if body_format is JSON else msgspec.msgpack
        alone = module.Decoder(types[0]).decode if len(types) == 1 else None
        self._decoders[body_format, lead] = decoders = module.Decoder(named).decode, alone
        return decoders


StepParts = tuple[tuple[bytes, ...], int | None, bytes | None, Create]
"""The decoded body of one timestep: each input's bytes, sorted by input name, and `seq`, `after`, `create`."""


class TypedStepDecoder:
    """Decodes the JSON body of one timestep, the most frequent request, in one call of msgspec."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        """Create the decoders for the declared inputs.

        Raises:
            ValueError: An input's name cannot be the name of a decoder's field.
        """
        specs = self._specs = sorted(specs, key=lambda spec: spec.name)
        types = [_nested(_LEAF[np.dtype(spec.dtype).kind], len(spec.row_shape)) for spec in specs]
        names = {f"i{i}": spec.name for i, spec in enumerate(specs)}
        fields = [(f"i{i}", type_) for i, type_ in enumerate(types)]
        self._named_inputs: Any = msgspec.defstruct(
            "Inputs", fields, rename=names, forbid_unknown_fields=True, gc=False
        )
        inputs_types = [self._named_inputs, types[0] if len(specs) == 1 else self._named_inputs]  # by name, or alone
        self._decoders = [_step_decoder(inputs_type) for inputs_type in inputs_types]
        self._message_decoders = [_step_decoder(inputs_type, of_feed=True) for inputs_type in inputs_types]
        self._packers = [row_packer(np.dtype(spec.dtype), spec.row_shape) for spec in specs]
        self._single_input = self._packers[0] if len(specs) == 1 else None
        self._colons = 1 + sum(1 + spec.name.count(":") for spec in specs)
        self._may_hide_colons = any(":" in spec.name for spec in specs)

    def read(self, body: bytes) -> StepParts:
        """Decode a step's body.

        Raises:
            ValueError: The body is not valid; likewise the others of `DECODE_ERRORS`.
        """
        return self._parts(body, _decoded(self._decoders, body))

    def read_feed_message(self, message: bytes) -> tuple[str | None, Raw | None, StepParts]:
        """Decode a feed's message with one timestep: its stream id and its message id, or None, and its timestep.

        Raises:
            ValueError: The message is not valid; likewise the others of `DECODE_ERRORS`.
        """
        if b"\\" in message:  # an escape could hide a colon
            raise NotTypedError
        envelope = _decoded(self._message_decoders, message)
        stream, message_id, colons = envelope.stream, envelope.id, 0
        if stream is not None:
            colons += 1 + stream.count(":")
        if message_id is not None:
            colons += 1 + bytes(message_id).count(b":")
        return stream, message_id, self._parts(message, envelope, colons)

    def _parts(self, body: bytes, envelope: Any, colons: int = 0) -> StepParts:
        inputs = envelope.inputs
        is_named = type(inputs) is self._named_inputs
        colons += self._colons if is_named else 1
        seq, after, create = envelope.seq, envelope.after, envelope.create
        if seq is not None:
            colons += 1
        if after is not None:
            colons, after = colons + 1, read_state_id(after)
        if create is None:
            create = "auto"
        else:
            colons += 1
        # See `reject_duplicate_keys`: if no name has a colon, a backslash can hide none.
        if body.count(b":") != colons or (self._may_hide_colons and b"\\" in body):
            raise NotTypedError
        if self._single_input is not None:
            return (self._single_input(inputs.i0 if is_named else inputs),), seq, after, create
        values = _astuple(inputs)
        return tuple([pack(value) for pack, value in zip(self._packers, values, strict=True)]), seq, after, create

    def body(self, parts: StepParts) -> StepBody:
        """Return decoded parts as a `StepBody`; its arrays are read-only."""
        packed, seq, after, create = parts
        arrays = {
            spec.name: np.ndarray((1, *spec.row_shape), spec.dtype, data)
            for spec, data in zip(self._specs, packed, strict=True)
        }
        return StepBody(arrays, 1, False, seq, after, create, "all")


def read_state_id(text: str) -> bytes:
    """Return the 16 bytes of a state id.

    Raises:
        NotTypedError: The text is not a state id.
    """
    if not is_state_id(text):
        raise NotTypedError
    return decode_state_id(text)


def reject_duplicate_keys(body: bytes, colons: int) -> None:
    """Check that no key occurs twice, by counting colons: each key has one, and numbers have none.

    msgspec silently accepts the last of two equal keys. A backslash could encode a colon in another way.
    """
    if body.count(b":") != colons or b"\\" in body:
        raise NotTypedError


def _step_decoder(inputs: Any, *, of_feed: bool = False) -> Callable[[bytes], Any]:
    """Return the decoder of a step's JSON body with inputs of such a type, or of a feed's message."""
    # None stands for "not given"; null itself is rejected.
    fields: list[tuple[str, Any, None]] = [("seq", Seq, None), ("after", str, None), ("create", Create, None)]
    if of_feed:
        fields += [("stream", str, None), ("id", Raw, None)]
    step_type = msgspec.defstruct("Step", [("inputs", inputs), *fields], forbid_unknown_fields=True, gc=False)
    return msgspec.json.Decoder(step_type).decode


def _decoded(decoders: Sequence[Callable[[bytes], Any]], body: bytes) -> Any:
    """Decode a body with the likelier of two decoders, or else with the other one."""
    is_alone = body.find(b"{", 1) < 0  # a second object is most likely `inputs` by name
    try:
        return decoders[is_alone](body)
    except msgspec.ValidationError:
        return decoders[not is_alone](body)


def row_packer(dtype: np.dtype[Any], row: tuple[int, ...]) -> Callable[[Any], bytes]:
    """Return a function that packs a decoded row to bytes; it raises one of `DECODE_ERRORS` for an invalid row.

    A row with a value that is not finite is invalid.
    """
    code = _PACK_CODES.get(dtype.name)
    if code is None or len(row) != 1:
        return lambda item: _checked(_array(item, dtype), row).tobytes()
    pack = struct.Struct(f"={row[0]}{code}").pack
    # pack raises on overflow, and JSON has no other numbers that are not finite
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


@np.errstate(over="ignore")  # values that overflow are found afterwards, without a warning
def _array(values: Any, dtype: np.dtype[Any]) -> Array:
    return np.array(values, dtype)
