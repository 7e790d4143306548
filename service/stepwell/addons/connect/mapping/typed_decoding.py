"""`TypedDecoder`: decodes messages of the expected form into the fields that a mapping reads, and skips all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from operator import attrgetter
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from stepwell.addons.connect.config import BodyFormat
from stepwell.addons.connect.mapping.input_columns import InputColumn
from stepwell.addons.connect.mapping.message_mapper import MessageMapper
from stepwell.addons.connect.mapping.paths import FieldPath, is_index
from stepwell_client.wire.ids import POSITION_LIMIT, SEQ_LIMIT

_SCALARS: Final[Mapping[str, Any]] = {"f": float, "i": int, "u": int, "b": bool}
_NEVER: Final = Annotated[str, Meta(min_length=1, max_length=0)]
_LONGEST_TUPLE: Final = 64  # a tuple is decoded faster than a list, but its type has an entry for each element
_STREAM: Final = str | int
_POSITION: Final = Annotated[int, Meta(ge=0, le=POSITION_LIMIT - 1)]
_TIME: Final = str | int | float
_SEQ: Final = Annotated[int, Meta(ge=1, le=SEQ_LIMIT - 1)]

Getter = Callable[[Any], Any]
"""Returns a field of a decoded message."""


class TypedDecoder:
    """Decodes what has the declared types and shapes; everything else is left to `MessageMapper`.

    The values are those that `MessageMapper` returns. Of fields that the mapping does not read, the syntax
    alone is checked.

    Attributes:
        stream: Returns the stream of a decoded message; None: it is not a field.
        position: Returns its position; None: it is not a field.
        seq: Returns its step; None: it has none.
        time: Returns its time, a text or a number; None: it has none.
    """

    def __init__(
        self,
        decode: Callable[[bytes | None], Any],
        *,
        stream: Getter | None,
        position: Getter | None,
        seq: Getter | None,
        time: Getter | None,
        inputs: Mapping[str, Sequence[Getter | float]],
        optional: Sequence[Sequence[Getter]],
    ) -> None:
        """Use `typed_decoder`."""
        self._decode = decode
        self._optional = optional
        self._inputs = inputs
        self.stream = stream
        self.position = position
        self.seq = seq
        self.time = time

    def decode(self, bodies: Sequence[bytes | None], max_bytes: int) -> list[Any]:
        """Return the decoded messages; None in the place of those that have another form.

        Args:
            bodies: The bytes of each message, or None.
            max_bytes: Larger messages are not decoded.
        """
        return self._with_fields(self._decoded(bodies, max_bytes))

    def values(self, documents: Sequence[Any]) -> dict[str, list[Any]]:
        """Return, by input, the values of decoded messages, as `InputColumn.stack` accepts them."""
        found = {}
        for name, getters in self._inputs.items():
            columns: list[Iterable[Any]] = [
                repeat(one, len(documents)) if isinstance(one, int | float) else map(one, documents) for one in getters
            ]
            found[name] = list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))
        return found

    def _decoded(self, bodies: Sequence[bytes | None], max_bytes: int) -> list[Any]:
        try:
            if max(map(len, bodies), default=0) <= max_bytes:  # type: ignore[arg-type]  # TypeError: one is None
                return list(map(self._decode, bodies))
        except (msgspec.MsgspecError, ValueError, RecursionError, TypeError):
            pass
        return [None if body is None or len(body) > max_bytes else self._decode_one(body) for body in bodies]

    def _with_fields(self, documents: list[Any]) -> list[Any]:
        """Return None in the place of messages in which all fields of an input are null, or absent: the type has both.

        A message without the fields is a dead letter, and one whose fields are null is none.
        """
        for getters in self._optional:
            for row, document in enumerate(documents):
                if document is not None and all(getter(document) is None for getter in getters):
                    documents[row] = None
        return documents

    def _decode_one(self, body: bytes) -> Any:
        try:
            return self._decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None


def typed_decoder(body_format: BodyFormat, mapper: MessageMapper) -> TypedDecoder | None:
    """Return the decoder of a mapping; None: the format or the paths are none that a type can have."""
    if body_format not in ("json", "msgpack") and mapper.bodies is None:
        return None
    fields = _Fields()
    try:
        stream = None if mapper.place.path is None else fields.add(mapper.place.path, _STREAM)
        position = None if mapper.position is None else fields.add(mapper.position, _POSITION)
        seq = None if mapper.seq is None else fields.add(mapper.seq, _SEQ)
        time = None if mapper.time is None else fields.add(mapper.time.path, _TIME)
        inputs = {name: _getters(fields, column) for name, column in mapper.columns.items()}
    except _UntypedError:
        return None
    kind = fields.struct()
    if mapper.bodies is not None:
        decode: Callable[[Any], Any] = mapper.bodies.typed(kind)
    else:
        decode = (msgspec.json.Decoder(kind) if body_format == "json" else msgspec.msgpack.Decoder(kind)).decode
    optional = [
        [getter for getter in getters if callable(getter)]
        for name, getters in inputs.items()
        if mapper.columns[name].may_be_missing and len(mapper.columns[name].parts) > 1
    ]
    return TypedDecoder(
        decode,
        stream=stream,
        position=position,
        seq=seq,
        time=time,
        inputs=inputs,
        optional=[*filter(None, optional)],
    )


class _UntypedError(Exception):
    """A path or an input has no type."""


class _Fields:
    """The fields of a message, nested as in their paths."""

    def __init__(self) -> None:
        self._tree: dict[str, Any] = {}
        self._whole_names: set[str] = set()

    def add(self, path: FieldPath, kind: Any, *default: Any) -> Getter:
        """Add the field of a path with its type, and return its getter.

        Raises:
            _UntypedError: The path has an index, or the field is used with another type.
        """
        if not path.parts or any(is_index(part) for part in path.parts):
            raise _UntypedError
        if len(path.parts) > 1:
            self._whole_names.add(path.text)  # a field with this name comes first
        level, attributes = self._tree, list[str]()
        for i, part in enumerate(path.parts):
            is_last = i == len(path.parts) - 1
            found = level.setdefault(part, (f"f{len(level)}", (kind, *default) if is_last else {}))
            attributes.append(found[0])
            if isinstance(found[1], dict) == is_last or (is_last and found[1] != (kind, *default)):
                raise _UntypedError
            level = found[1]
        return attrgetter(".".join(attributes))

    def struct(self) -> Any:
        """Return the type of a message."""
        tree = dict(self._tree)
        for name in self._whole_names:
            if name in tree:
                raise _UntypedError
            tree[name] = (f"w{len(tree)}", (_NEVER, ""))
        return _struct(tree)


def _struct(tree: Mapping[str, Any]) -> Any:
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for attribute, kind in tree.values():
        fields.append((attribute, _struct(kind)) if isinstance(kind, dict) else (attribute, *kind))
    fields.sort(key=len)  # those with a default behind the others
    names = {attribute: name for name, (attribute, _) in tree.items()}
    return msgspec.defstruct("Message", fields, rename=names, gc=False)


def _getters(fields: _Fields, column: InputColumn) -> list[Getter | float]:
    """Add the fields of an input."""
    scalar = _SCALARS[column.dtype.kind]
    may_be_missing = column.may_be_missing
    element = scalar | None if may_be_missing else scalar
    if len(column.parts) == 1 and isinstance(column.parts[0], FieldPath):
        kind: Any = element
        for length in reversed(column.spec.shape):
            if 0 < length <= _LONGEST_TUPLE:
                kind = tuple[(kind,) * length]  # type: ignore[misc]  # built at run time
            else:
                kind = Annotated[list[kind], Meta(min_length=length, max_length=length)]
        if column.size == 1:
            kind = kind | scalar
        return [fields.add(column.parts[0], kind)]
    if len(column.parts) != column.size:
        raise _UntypedError
    getters: list[Getter | float] = []
    for part in column.parts:
        if isinstance(part, FieldPath):
            getters.append(fields.add(part, element, *([None] if may_be_missing else ())))
        elif type(part) not in column.types:
            raise _UntypedError
        else:
            getters.append(part)
    return getters
