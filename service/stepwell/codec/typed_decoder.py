"""Decodes inputs to arrays on the fast path: a typed decoder built for the model's inputs, then NumPy.

It defines what is valid, and gives no reason: `codec/strict/faults.py` finds what is wrong with a body that it rejects.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct
from msgspec.structs import astuple as _astuple

from stepwell.codec.msgpack_maps import has_unique_keys, n_entries
from stepwell.codec.step_bodies import FeedMessage, PeekBody, StepBody, StreamMessage
from stepwell.codec.strict.parse import parse
from stepwell.codec.strict.tensors import is_finite, may_be_missing, same_nan
from stepwell_client.wire.formats import JSON, MSGPACK, Format
from stepwell_export.runtime.manifest import Array, InputSpec

DECODE_ERRORS = (ValueError, OverflowError, TypeError, RecursionError, struct.error)
"""What decoders raise for an invalid body. msgspec's errors, UnicodeDecodeError, and NumPy's for ragged lists are
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
    """The body is not valid, or not of the kind that a decoder is for."""


class SlowBodyError(Exception):
    """A body is too long to be read row by row, or parsed whole, on the event loop; nothing is known of it yet."""


class _PackedArray(Struct, forbid_unknown_fields=True, gc=False):
    """A tensor in msgpack."""

    d: str
    s: list[int]
    b: bytes


_PACKED_KEYS = len(_PackedArray.__struct_fields__)
_decode_packed = msgspec.msgpack.Decoder(_PackedArray).decode
_MODULES: dict[Format, Any] = {JSON: msgspec.json, MSGPACK: msgspec.msgpack}
_MEMBERS = {body_format: module.Decoder(dict[str, Raw]).decode for body_format, module in _MODULES.items()}
_ITEMS = {body_format: module.Decoder(list[Raw]).decode for body_format, module in _MODULES.items()}
_LEAF: dict[str, type] = {"b": bool, "i": int, "u": int, "f": float}
_NULL = {JSON: ord("n"), MSGPACK: 0xC0}  # the first byte of null
_BRACE = ord("{")


class TypedInputs(NamedTuple):
    """Decoded inputs.

    Attributes:
        arrays: By name, in the order of the declared inputs; an input that is left out has missing values.
        names: Those of the inputs in the body; empty: there is one input without its name.
        wrong: The rows of columns that are not valid, by name; their values must not be used.
    """

    arrays: dict[str, Array]
    names: Collection[str]
    wrong: Mapping[str, Sequence[int]] = MappingProxyType({})


class TypedInputsDecoder:
    """Decodes the `inputs` of one model's bodies; it defines which are valid."""

    def __init__(self, specs: Sequence[InputSpec], *, max_bytes: float = math.inf) -> None:
        """Create it for the declared inputs; each decoder is created when it is first needed.

        Args:
            specs: The inputs.
            max_bytes: Longer columns that have to be decoded row by row are a `SlowBodyError`.
        """
        self._inputs = [_InputDecoder(spec) for spec in specs]
        self._names = tuple([spec.name for spec in specs])
        self._all = frozenset(self._names)
        self._required = {one.name for one in self._inputs if not one.may_be_missing}
        self._structs: dict[int, Callable[[Raw], Any]] = {}
        self._max_bytes = max_bytes

    def read(self, raw: Raw, body_format: Format, lead: int, rows: int | None = None) -> TypedInputs:
        """Decode inputs that have `lead` axes before those of the row.

        Args:
            raw: The encoded value of `inputs` in the body.
            body_format: The body's format.
            lead: 0: a step, to which a leading axis of 1 is added; 1: a chunk or columns; 2: columns of chunks.
            rows: The number of rows of columns; None: these are no columns.

        Returns:
            The arrays, none of whose leading axes is empty. In columns, a row that is not valid is no error.

        Raises:
            ValueError: The inputs are not valid; likewise the others of `DECODE_ERRORS`.
            SlowBodyError: See `max_bytes`.
        """
        if rows == 0:
            raise NotTypedError
        if body_format is JSON and len(raw) <= LARGE_BYTES:
            try:
                return self._read_lists(raw, lead, rows)
            except DECODE_ERRORS:
                pass  # something is missing, or not valid
        return self._read_each(raw, body_format, lead, rows)

    def _read_lists(self, raw: Raw, lead: int, rows: int | None) -> TypedInputs:
        """Decode all inputs in JSON by one call of msgspec, which takes a third less time than one for each."""
        values: Sequence[Any]
        names: Collection[str] = ()
        if len(self._inputs) == 1 and memoryview(raw)[0] != _BRACE:
            values = (self._inputs[0].decoder(JSON, lead)(raw),)
        else:
            decode = self._structs.get(lead)
            if decode is None:  # the order of the struct's fields is that of the declared inputs
                struct_type = _inputs_by_name(self._names, [one.type(lead) for one in self._inputs])
                decode = self._structs[lead] = msgspec.json.Decoder(struct_type).decode
            values, names = _astuple(decode(raw)), self._names
        arrays = {one.name: one.array(value, lead) for one, value in zip(self._inputs, values, strict=True)}
        if rows is not None and any([len(array) != rows for array in arrays.values()]):  # noqa: C419 - generators are slow
            raise NotTypedError
        return TypedInputs(arrays, names)

    def _read_each(self, raw: Raw, body_format: Format, lead: int, rows: int | None) -> TypedInputs:
        """Decode one input after the other; those that may be missing may be `null` or left out."""
        null = _NULL[body_format]
        members, names = self._members(raw, body_format)
        arrays: dict[str, Array] = {}
        wrong: dict[str, Sequence[int]] = {}
        for one in self._inputs:
            value = members.get(one.name)
            if value is None or memoryview(value)[0] == null:
                if not one.may_be_missing:
                    raise NotTypedError
            elif rows is None:
                arrays[one.name] = one.read(value, body_format, lead)
            else:
                arrays[one.name], wrong[one.name] = self._read_column(one, value, body_format, lead, rows)
        if len(arrays) < len(self._inputs):
            leading = self._leading_axes(arrays, lead, rows)
            arrays = {
                one.name: arrays[one.name] if one.name in arrays else one.missing(leading) for one in self._inputs
            }
        return TypedInputs(arrays, names, wrong)

    @staticmethod
    def _leading_axes(arrays: Mapping[str, Array], lead: int, rows: int | None) -> tuple[int, ...]:
        """Return the axes before those of the row; if all inputs are left out, the length of a chunk is not known."""
        if arrays:
            return next(iter(arrays.values())).shape[: lead or 1]
        if lead != (rows is not None):
            raise NotTypedError
        return (1 if rows is None else rows,)

    def _members(self, raw: Raw, body_format: Format) -> tuple[Mapping[str, Raw], Collection[str]]:
        """Return the encoded inputs by name, and the names that are in the body."""
        entries = n_entries(raw) if body_format is MSGPACK else 0 if memoryview(raw)[0] == _BRACE else -1
        members: dict[str, Raw] = _MEMBERS[body_format](raw) if entries >= 0 else {}
        if entries > len(members):
            raise NotTypedError  # in msgpack: a key occurs twice
        names = members.keys()
        if len(self._names) == 1 and self._names[0] not in names and (entries < 0 or "b" in names):
            return {self._names[0]: raw}, ()  # the one input without its name, perhaps packed
        if entries < 0 or not self._required <= names <= self._all:
            raise NotTypedError
        return members, names

    def _read_column(
        self, one: _InputDecoder, raw: Raw, body_format: Format, lead: int, rows: int
    ) -> tuple[Array, Sequence[int]]:
        """Return one input of all rows, and which of these are not valid.

        Of chunks, most have to be equally long: the others are not valid.
        """
        try:
            if len(array := one.read(raw, body_format, lead)) == rows:
                return array, ()
        except DECODE_ERRORS:
            pass  # most columns are valid; for these, `contextlib.suppress` would take longer
        if is_packed(raw, body_format):
            return one.read_packed_rows(raw, lead, rows)
        if len(raw) > self._max_bytes:
            raise SlowBodyError
        items = _ITEMS[body_format](raw)
        if len(items) != rows:
            raise NotTypedError
        null = _NULL[body_format]
        missing = [i for i, item in enumerate(items) if one.may_be_missing and memoryview(item)[0] == null]
        parts: dict[int, Array] = {}
        for i in [*range(rows)] if not missing else sorted({*range(rows)}.difference(missing)):
            with contextlib.suppress(*DECODE_ERRORS):
                part = one.read(items[i], body_format, lead - 1)
                parts[i] = part if lead > 1 else part[0]
        shape = one.row
        if lead > 1:
            lengths = Counter(map(len, parts.values())).most_common(1)
            shape = (lengths[0][0] if lengths else 1, *shape)
        column = np.zeros((rows, *shape), one.dtype)
        if missing:
            column[missing] = np.nan
        valid = [i for i, part in parts.items() if part.shape == shape]
        for i in valid:
            column[i] = parts[i]
        return column, sorted({*range(rows)}.difference(missing, valid))


class _InputDecoder:
    """Decodes the tensors of one declared input."""

    def __init__(self, spec: InputSpec) -> None:
        self.name, self.row = spec.name, spec.row_shape
        self.dtype, self._dtype_name = np.dtype(spec.dtype), spec.dtype  # NumPy computes `dtype.name` each time
        self.may_be_missing = may_be_missing(spec)
        self._decoders: dict[tuple[Format, int], Callable[[bytes | Raw], Any]] = {}

    def type(self, lead: int) -> Any:
        """Return the type of nested lists that have so many axes before those of the row."""
        return nested_type(self.dtype, lead + len(self.row), or_none=self.may_be_missing)

    def decoder(self, body_format: Format, lead: int) -> Callable[[bytes | Raw], Any]:
        """Return the decoder of such lists."""
        decode = self._decoders.get((body_format, lead))
        if decode is None:
            decode = self._decoders[body_format, lead] = _MODULES[body_format].Decoder(self.type(lead)).decode
        return decode

    def array(self, values: Any, lead: int) -> Array:
        """Return decoded lists as an array, with a leading axis of 1 if `lead` is 0.

        Raises:
            ValueError: Their shape is another one, or a value is not finite; likewise the others of `DECODE_ERRORS`.
        """
        return self._checked(_array(values if lead else [values], self.dtype), lead or 1)

    def read(self, raw: Raw, body_format: Format, lead: int) -> Array:
        """Decode a tensor, packed or of lists; lists of values that may be missing may be `null`; otherwise `array`."""
        dims = (*[None] * lead, *self.row)
        if is_packed(raw, body_format):
            array = _unpack(_decode_packed(raw), self.dtype, self._dtype_name)
        elif body_format is JSON and len(raw) > _PIECE_BYTES and len(dims) > 1:
            array = self._in_pieces(raw, dims)
        else:
            array = self._from_lists(self.decoder(body_format, lead)(raw), dims)
        return self._checked(array if lead else array[None], lead or 1)

    def read_packed_rows(self, raw: Raw, lead: int, rows: int) -> tuple[Array, list[int]]:
        """Decode a packed column, and return which of its rows have a value that may not be there."""
        array = _unpack(_decode_packed(raw), self.dtype, self._dtype_name)
        allowed = ~np.isinf(array) if self.may_be_missing else np.isfinite(array)
        valid = allowed.reshape(len(array), -1).all(axis=1)
        column = self._checked(np.where(valid.reshape(-1, *[1] * (array.ndim - 1)), array, self.dtype.type(0)), lead)
        if len(column) != rows:
            raise NotTypedError
        return column, np.flatnonzero(~valid).tolist()

    def missing(self, leading: tuple[int, ...]) -> Array:
        """Return missing values in rows that have such axes before them."""
        return np.full((*leading, *self.row), np.nan, self.dtype)

    def packer(self) -> Callable[[Any], bytes]:
        """Return a function that packs the decoded lists of a row to bytes; it raises what `array` does."""
        if self.may_be_missing:
            return lambda values: self.array(values, 0).tobytes()
        return row_packer(self.dtype, self.row)

    def _checked(self, array: Array, lead: int) -> Array:
        if array.shape[lead:] != self.row or array.ndim != lead + len(self.row) or 0 in array.shape[:lead]:
            raise NotTypedError
        if not is_finite(array):
            if not self.may_be_missing or np.isinf(array).any():
                raise NotTypedError
            array = same_nan(array)
        return array

    def _from_lists(self, values: Any, dims: tuple[int | None, ...]) -> Array:
        return _array(_with_missing(values, dims) if self.may_be_missing else values, self.dtype)

    def _in_pieces(self, raw: Raw, dims: tuple[int | None, ...]) -> Array:
        """Return nested lists in JSON as an array of these dimensions, at least two, decoded a piece at a time."""
        decode = msgspec.json.Decoder(nested_type(self.dtype, len(dims), or_none=self.may_be_missing)).decode
        arrays, piece, size = list[Array](), list[Raw](), 0
        rows = _ITEMS[JSON](raw)
        for i, row in enumerate(rows):
            if len(row) > _PIECE_BYTES and len(dims) > 2:
                arrays.append(self._in_pieces(row, dims[1:])[None])
                continue
            piece.append(row)
            size += len(row)
            if size > _PIECE_BYTES or i + 1 == len(rows) or len(rows[i + 1]) > _PIECE_BYTES:
                arrays.append(self._from_lists(decode(b"[%b]" % b",".join(piece)), dims))
                piece, size = [], 0
        return np.concatenate(arrays)


def nested_type(dtype: np.dtype[Any], depth: int, *, or_none: bool) -> Any:
    """Return the type of nested lists of numbers, as msgspec decodes it; `or_none`: what is in a list may be None."""
    nested: Any = _LEAF[dtype.kind]
    for _ in range(depth):
        nested = list[nested | None] if or_none else list[nested]
    return nested


def is_packed(raw: bytes | Raw, body_format: Format) -> bool:
    """Whether an encoded value seems to be a packed tensor: a map in msgpack with as many keys."""
    return body_format is MSGPACK and n_entries(raw) == _PACKED_KEYS


def _with_missing(values: Any, dims: tuple[int | None, ...]) -> Any:
    """Return nested lists in which each `None` in place of a list is an array of missing values."""
    if values is None:
        return np.full(dims, np.nan)  # a TypeError if a dimension is not known
    return values if len(dims) < 2 else [_with_missing(one, dims[1:]) for one in values]


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
        inputs = [_InputDecoder(spec) for spec in specs]
        self._names = tuple([one.name for one in inputs])
        types = [one.type(0) for one in inputs]
        self._named = _step_decoder(body_type, _inputs_by_name(self._names, types))
        self._alone = _step_decoder(body_type, types[0]) if len(specs) == 1 else None
        self._packers = [one.packer() for one in inputs]
        self._single_input = self._packers[0] if len(specs) == 1 else None
        self._colons = sum(1 + spec.name.count(":") for spec in specs)
        self._may_hide_colons = issubclass(body_type, StreamMessage) or any(":" in spec.name for spec in specs)
        self._has_chunk = issubclass(body_type, PeekBody)
        self._is_message = issubclass(body_type, FeedMessage)
        self._names_stream = issubclass(body_type, StreamMessage)

    def read(self, body: bytes) -> TypedStep:
        """Decode a body, once.

        Raises:
            ValueError: The body is not valid, or has something that few have; likewise the others of `DECODE_ERRORS`.
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
                raise NotTypedError  # a list; or an id that may hide a colon by an escape
            colons += 3 + source.id.count(":")
        is_plain = body.count(b":") == colons
        if not is_plain:
            is_other = self._has_chunk and not (step.chunk is UNSET and step.keep is UNSET)
            if is_other or b"\\" in body or body.count(b":") != _encode(step).count(b":"):
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


def reject_duplicate_keys(body: bytes, envelope: Any, names: Collection[str], *, max_bytes: float = math.inf) -> None:
    """Check that no key occurs twice, by counting colons: each key has one, and numbers have none.

    msgspec silently accepts the last of two equal keys. A body with a backslash, which could encode a colon in another
    way, is parsed instead.

    Args:
        body: The JSON body.
        envelope: The same, decoded, but for its inputs.
        names: The names of its inputs, if it has them by name.
        max_bytes: If more would be parsed, that is a `SlowBodyError`.

    Raises:
        NotTypedError: A key occurs twice.
        ServiceError: `bad_json`: the same.
    """
    if b"\\" in body:
        if len(body) > max_bytes:
            raise SlowBodyError
        parse(body, JSON)
    else:
        given = [value for value in _astuple(envelope) if value is not UNSET]
        texts = _encode([value for value in given if value is not envelope.inputs])
        of_inputs = sum([1 + name.count(":") for name in names])
        # Neither the inputs nor the rest can have fewer, so both have as many as their sum allows.
        if body.count(b":") != len(given) + texts.count(b":") + of_inputs:
            raise NotTypedError


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


@np.errstate(over="ignore")  # values that overflow are found afterwards, without a warning
def _array(values: Any, dtype: np.dtype[Any]) -> Array:
    return np.array(values, dtype)
