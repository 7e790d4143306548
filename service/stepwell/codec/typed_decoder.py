"""Decodes inputs to arrays on the fast path: a typed decoder built for the model's inputs, then NumPy.

It accepts valid inputs only and gives no reason: `service/stepwell/codec/strict/` decodes again whatever it rejects.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, inspect
from msgspec.structs import astuple as _astuple

from stepwell.codec.msgpack_maps import has_unique_keys, n_entries
from stepwell.codec.step_bodies import FeedMessage, PeekBody, StepBody, StreamMessage
from stepwell.codec.strict.parse import parse
from stepwell.codec.strict.tensors import is_finite, may_be_missing, nested_type, same_nan
from stepwell.errors import ServiceError
from stepwell_client.wire.formats import JSON, Format
from stepwell_export.runtime.manifest import Array, InputSpec

DECODE_ERRORS = (ValueError, OverflowError, TypeError, RecursionError, struct.error)
"""What the fast path raises for an invalid body. msgspec's errors, UnicodeDecodeError, and NumPy's for ragged lists are
ValueErrors; integers out of range are OverflowErrors, and numbers that do not fit are errors of struct."""

_INPUTS = b'"inputs"'
_INPUTS_KEYS = (_INPUTS + b":", _INPUTS + b": ")
_encode = msgspec.json.Encoder().encode
LARGE_BYTES: Final = 256 * 1024
"""A larger body is decoded in a thread. No call in it holds the interpreter lock for long: the event loop needs it."""

_PIECE_BYTES: Final = 64 * 1024
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


_PACKED_KEYS = len(_PackedArray.__struct_fields__)
_decode_packed = msgspec.msgpack.Decoder(_PackedArray).decode

_Decoders = tuple[Callable[[Raw], Sequence[Any]], Callable[[Raw], Any] | None]
"""Decoders of `inputs` as an object by name, to its values in the order of the inputs, and, for a model with one input,
as a bare nested list (a bare packed tensor would be ambiguous). One of the union of both takes half as long again."""

_BRACE = ord("{")


class TypedInputsDecoder:
    """Decodes the `inputs` of one model's bodies."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        """Create it for the declared inputs; each decoder is created when it is first needed."""
        # `dtype.name` is computed by numpy each time.
        self._specs = [(spec.name, np.dtype(spec.dtype), spec.dtype, spec.row_shape) for spec in specs]
        self._names = [spec.name for spec in specs]
        self._may_be_missing = {spec.name: may_be_missing(spec) for spec in specs}
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
        if body_format is JSON and len(raw) > LARGE_BYTES:
            return self._read_in_pieces(raw, lead)
        if alone is None or (memoryview(raw)[0] == _BRACE if body_format is JSON else n_entries(raw) >= 0):
            # The order of the struct's fields is that of the declared inputs.
            values, colons = named(raw), self._colons
        else:
            values, colons = (alone(raw),), 0
        arrays = {}
        for (name, dtype, dtype_name, row), item in zip(self._specs, values, strict=True):
            if type(item) is _PackedArray:
                array = _unpack(item, dtype, dtype_name)
                array = array if lead else array[None]
            else:
                array = _array(item if lead else [item], dtype)
            if array.shape[lead or 1 :] != row or array.ndim != (lead or 1) + len(row):
                raise NotTypedError
            if not is_finite(array):
                if not self._may_be_missing[name] or np.isinf(array).any():
                    raise NotTypedError
                array = same_nan(array)
            arrays[name] = array
        return arrays, colons

    def _read_in_pieces(self, raw: Raw, lead: int) -> tuple[dict[str, Array], int]:
        """Do what `read` does, for large inputs in JSON."""
        is_named = memoryview(raw)[0] == _BRACE or len(self._specs) > 1
        values = _astuple(msgspec.json.decode(raw, type=self._raw_by_name)) if is_named else (raw,)
        arrays = {}
        for (name, dtype, _, row), item in zip(self._specs, values, strict=True):
            array = _array_in_pieces(item, dtype, lead + len(row))
            array = array if lead else array[None]
            if array.shape[lead or 1 :] != row or not is_finite(array):
                raise NotTypedError
            arrays[name] = array
        return arrays, self._colons if is_named else 0

    @cached_property
    def _raw_by_name(self) -> Any:
        return _inputs_by_name(self._names, [Raw] * len(self._names))

    def _decoder(self, body_format: Format, lead: int) -> _Decoders:
        types = [
            nested_type(dtype, lead + len(row), or_none=self._may_be_missing[name])
            for name, dtype, _, row in self._specs
        ]
        module = msgspec.json if body_format is JSON else msgspec.msgpack
        lists = [module.Decoder(one).decode for one in types]
        by_name = _inputs_by_name(self._names, types if body_format is JSON else [Raw] * len(types))
        decode = module.Decoder(by_name).decode

        def named(raw: Raw) -> Sequence[Any]:
            if body_format is JSON:
                return _astuple(decode(raw))
            if n_entries(raw) != len(lists):
                raise NotTypedError  # a key occurs twice, or one is missing
            values = zip(lists, _astuple(decode(raw)), strict=True)
            return [(_decode_packed if n_entries(one) == _PACKED_KEYS else read)(one) for read, one in values]

        self._decoders[body_format, lead] = decoders = named, lists[0] if len(lists) == 1 else None
        return decoders


TypedStep = tuple[StepBody, tuple[bytes, ...], bool]
"""A decoded body of one timestep: the body, each input's bytes, sorted by input name, and whether only `seq`, `after`
and `source` are given besides what names the inputs and the message."""


class TypedStepDecoder:
    """Decodes the JSON body of one timestep, the most frequent request, in one call of msgspec."""

    def __init__(self, specs: Sequence[InputSpec], body_type: type[StepBody]) -> None:
        """Create the decoder of a body for the declared inputs.

        Raises:
            ValueError: An input's name cannot be the name of a decoder's field.
        """
        specs = sorted(specs, key=lambda spec: spec.name)
        types = [nested_type(np.dtype(spec.dtype), len(spec.row_shape)) for spec in specs]
        self._named = _step_decoder(body_type, _inputs_by_name([spec.name for spec in specs], types))
        self._alone = _step_decoder(body_type, types[0]) if len(specs) == 1 else None
        self._packers = [row_packer(np.dtype(spec.dtype), spec.row_shape) for spec in specs]
        self._single_input = self._packers[0] if len(specs) == 1 else None
        self._colons = sum(1 + spec.name.count(":") for spec in specs)
        self._may_hide_colons = issubclass(body_type, StreamMessage) or any(":" in spec.name for spec in specs)
        self._has_chunk = issubclass(body_type, PeekBody)
        self._is_message = issubclass(body_type, FeedMessage)
        self._names_stream = issubclass(body_type, StreamMessage)

    def read(self, body: bytes) -> TypedStep:
        """Decode a body, once.

        Raises:
            ValueError: The body is not valid; likewise the others of `DECODE_ERRORS`.
        """
        if self._may_hide_colons and b"\\" in body:  # by an escape
            raise NotTypedError
        brace = body.find(b"{", 1)  # a second object is `inputs` by name, or another field
        is_named = self._alone is None or (brace >= 0 and _are_inputs_named(body, brace))
        step = self._named(body) if self._alone is None or is_named else self._alone(body)
        # One colon for each field that most bodies have: if the body has no more, it has no other field, and no key
        # twice. See `reject_duplicate_keys`.
        input_colons = self._colons if is_named else 0
        colons = 1 + input_colons + (step.seq is not UNSET) + (step.after is not UNSET)
        if self._names_stream:
            colons += 1 + step.stream.count(":")
        if self._is_message and step.id is not UNSET:
            colons += 1 + bytes(step.id).count(b":")
        if (source := step.source) is not UNSET:
            if type(source.at) is not int or (not self._may_hide_colons and b"\\" in body):
                raise NotTypedError  # a list of one, or an error; or an id that may hide a colon by an escape
            colons += 3 + source.id.count(":")
        is_plain = body.count(b":") == colons
        if not is_plain:
            reject_duplicate_keys(body, step, input_colons)
            if self._has_chunk and not (step.chunk is UNSET and step.keep is UNSET):
                raise NotTypedError
        inputs = step.inputs
        if self._single_input is not None:
            return step, (self._single_input(inputs.i0 if is_named else inputs),), is_plain
        values = zip(self._packers, _astuple(inputs), strict=True)
        return step, tuple([pack(value) for pack, value in values]), is_plain


def _are_inputs_named(body: bytes, brace: int) -> bool:
    """Return whether the inputs of a JSON body seem to be an object; the body is not parsed.

    Args:
        body: The body.
        brace: Offset of its second opening brace.
    """
    if body.endswith(_INPUTS_KEYS, 0, brace):
        return True
    at = body.find(_INPUTS) + len(_INPUTS)
    return b"{" in body[at : at + 4]  # a colon and white space, then the brace


@cache
def texts_with_colons(body_type: type[Struct]) -> tuple[str, ...]:
    """Return the names of a body's fields whose values may have colons, but `inputs`."""
    info: Any = inspect.type_info(body_type)
    return tuple(field.name for field in info.fields if field.name != "inputs" and not _has_no_colon(field.type))


def _has_no_colon(info: Any) -> bool:
    match info:
        case inspect.Metadata(type=inner) | inspect.ListType(item_type=inner):
            return _has_no_colon(inner)
        case inspect.UnionType(types=types):
            return all(map(_has_no_colon, types))
        case inspect.StrType(pattern=pattern):
            return pattern is not None and ":" not in pattern
        case inspect.LiteralType(values=values):
            return not any(":" in str(value) for value in values)
    return isinstance(info, (inspect.IntType, inspect.FloatType, inspect.BoolType, inspect.NoneType))


def reject_duplicate_keys(body: bytes, envelope: Struct, colons: int, n_inputs: int | None = None) -> None:
    """Check that no key occurs twice, by counting colons: each key has one, and numbers have none.

    msgspec silently accepts the last of two equal keys. A backslash could encode a colon in another way.

    Args:
        body: The JSON body.
        envelope: The same, decoded.
        colons: Number of colons in its inputs.
        n_inputs: Number of inputs by name, all of them numbers, if `envelope` has them undecoded.

    Raises:
        NotTypedError: A key may occur twice.
    """
    if b"\\" in body:
        _reject_duplicates_by_escapes(body, envelope, n_inputs)
        return
    fields = _astuple(envelope)
    colons += len(fields) - fields.count(UNSET)
    for name in texts_with_colons(type(envelope)):
        value = getattr(envelope, name)
        if value is not UNSET:
            colons += _encode(value).count(b":")
    if body.count(b":") != colons:
        raise NotTypedError


def _reject_duplicates_by_escapes(body: bytes, envelope: Struct, n_inputs: int | None) -> None:
    """Do what `reject_duplicate_keys` does for a body with a backslash, by which colons and keys may be encoded.

    The names of inputs have no quotation mark, so each has two in the body, however it is encoded; the values have
    none. What is left of the body is parsed strictly.
    """
    raw: Any = getattr(envelope, "inputs", None)
    if n_inputs is None or type(raw) is not Raw:
        raise NotTypedError
    inputs = bytes(raw)
    at = body.find(inputs)
    if inputs.count(b'"') != 2 * n_inputs or body.find(inputs, at + 1) >= 0:
        raise NotTypedError
    try:
        parse(b"%b0%b" % (body[:at], body[at + len(inputs) :]), JSON)
    except ServiceError as exc:
        raise NotTypedError from exc


def reject_duplicate_entries(body: bytes, envelope: Struct) -> None:
    """Check that no key of a msgpack body's envelope occurs twice; for `inputs` its decoder does.

    Args:
        body: The msgpack body.
        envelope: The same, decoded.

    Raises:
        NotTypedError: A key may occur twice.
    """
    fields = _astuple(envelope)
    if n_entries(body) != len(fields) - fields.count(UNSET):
        raise NotTypedError
    has_maps = getattr(envelope, "source", UNSET) is not UNSET or getattr(envelope, "id", UNSET) is not UNSET
    if has_maps and not has_unique_keys(body):
        raise NotTypedError


def _inputs_by_name(names: Sequence[str], types: Sequence[Any]) -> Any:
    """Return the type of inputs as an object by name, with the fields `i0`, `i1` and so on in this order.

    Raises:
        ValueError: A name cannot be the name of a decoder's field.
    """
    fields = [(f"i{i}", one) for i, one in enumerate(types)]
    renamed = {f"i{i}": name for i, name in enumerate(names)}
    return msgspec.defstruct("Inputs", fields, rename=renamed, forbid_unknown_fields=True, gc=False)


def _step_decoder(body_type: type[StepBody], inputs: Any) -> Callable[[bytes], Any]:
    """Return the decoder of a JSON body with inputs of such a type."""
    step_type = msgspec.defstruct(
        body_type.__name__, [("inputs", inputs)], bases=(body_type,), kw_only=True, forbid_unknown_fields=True, gc=False
    )
    return msgspec.json.Decoder(step_type).decode


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


def _unpack(packed: _PackedArray, dtype: np.dtype[Any], dtype_name: str) -> Array:
    if packed.d != dtype_name or min(packed.s, default=0) < 0 or len(packed.b) != math.prod(packed.s) * dtype.itemsize:
        raise NotTypedError
    if dtype.kind == "b" and packed.b.translate(None, b"\x00\x01"):
        raise NotTypedError
    return np.frombuffer(packed.b, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(packed.s)


def _array_in_pieces(raw: Raw, dtype: np.dtype[Any], depth: int) -> Array:
    """Return nested lists in JSON as an array, decoded a piece at a time."""
    if len(raw) <= _PIECE_BYTES or depth < 2:
        return _array(msgspec.json.decode(raw, type=nested_type(dtype, depth)), dtype)
    decode, arrays, piece, size = msgspec.json.Decoder(nested_type(dtype, depth)).decode, list[Array](), list[Raw](), 0
    rows = msgspec.json.decode(raw, type=list[Raw])
    for i, row in enumerate(rows):
        if len(row) > _PIECE_BYTES:
            arrays.append(_array_in_pieces(row, dtype, depth - 1)[None])
            continue
        piece.append(row)
        size += len(row)
        if size > _PIECE_BYTES or i + 1 == len(rows) or len(rows[i + 1]) > _PIECE_BYTES:
            arrays.append(_array(decode(b"[%b]" % b",".join(piece)), dtype))
            piece, size = [], 0
    return np.concatenate(arrays)


@np.errstate(over="ignore")  # values that overflow are found afterwards, without a warning
def _array(values: Any, dtype: np.dtype[Any]) -> Array:
    return np.array(values, dtype)
