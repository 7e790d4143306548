"""`StreamPlace`: where a message has the id of its stream: its key, its topic, a header or a field."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from stepwell.addons.connect.mapping.decoding import TextValue
from stepwell.addons.connect.mapping.paths import MISSING, FieldPath
from stepwell.addons.connect.messages import BadMessageError, BrokerMessage, ConnectUsageError, MessageColumns
from stepwell.addons.text_values import id_text_of, stream_id_of
from stepwell.errors import ServiceError
from stepwell.ids import check_stream_id
from stepwell_client.wire.stream_templates import StreamTemplate, is_template

_HASHED: Final = frozenset((str, bytes, int, TextValue))  # not `float`: 42.0 has the hash of 42, and is no id
_MOST_KNOWN: Final = 1_000_000


class StreamPlace:
    """Reads what stands in the place, and returns the stream's id for it.

    Attributes:
        path: The field; None: it is another place.
        paths: All fields that are read: that one, or those of a template.
    """

    def __init__(self, place: str, segment: re.Pattern[str] | None) -> None:
        """Create a place.

        Args:
            place: `key`, `topic`, `header:NAME`, the path of a field, or a template of these, such as `pump-{id}`.
            segment: Matches a topic; its only group is the stream's id. None: the whole topic is.

        Raises:
            ConnectUsageError: The path is no path, or the template is none.
        """
        self._template = _template_of(place)
        self._parts = [StreamPlace(one, segment) for one in self._template.names] if self._template else []
        self._place = place
        self._segment = segment
        self._header = place.removeprefix("header:") if place.startswith("header:") else None
        is_field = self._header is None and place not in ("key", "topic") and self._template is None
        self.path = FieldPath(place) if is_field else None
        self.paths: list[FieldPath] = (
            [self.path] if self.path else [path for part in self._parts for path in part.paths]
        )
        self._known: dict[bytes | str | int, str] = {}

    def stream_of(self, message: BrokerMessage, document: Any) -> str:
        """Return the id of a message's stream.

        Raises:
            BadMessageError: There is none, or it is not a valid id.
        """
        if self._template is not None:
            return self._filled(self._template, message, document)
        return self._stream(self._read(message, document))

    def _read(self, message: BrokerMessage, document: Any) -> Any:
        if self.path is not None:
            found = self.path.read(document)
            if found is MISSING:
                raise BadMessageError("bad_request", self.path.missing_in(document))
            return found
        if self._header is not None:
            return message.headers.get(self._header)
        return message.key if self._place == "key" else message.topic

    def _filled(self, template: StreamTemplate, message: BrokerMessage, document: Any) -> str:
        """Return the id that a template makes of a message."""
        try:
            return check_stream_id(template.fill(part._text_of(part._read(message, document)) for part in self._parts))
        except ValueError as exc:
            raise BadMessageError("bad_request", str(exc)) from exc
        except ServiceError as exc:
            raise BadMessageError("bad_request", exc.problem) from exc

    def _text_of(self, value: Any) -> str:
        """Return the text of a part of an id, which may have any characters."""
        if value is None and self.path is None:
            raise BadMessageError("bad_request", f"the message has no {self._named()}")
        try:
            return id_text_of(self._segment_of(value) if self._place == "topic" else value)
        except ServiceError as exc:
            where = "" if self.path is None else f"the field {self.path.text!r}: "
            raise BadMessageError("bad_request", f"{where}the{exc.problem.removeprefix('The')}") from exc

    def _named(self) -> str:
        return "key" if self._header is None else f"header {self._header!r}"

    def values_in(self, messages: MessageColumns) -> Sequence[bytes | str | None] | None:
        """Return what stands in the place, of each message; None: it is a header or a field."""
        if self.path is not None or self._header is not None or self._template is not None:
            return None
        return messages.keys if self._place == "key" else messages.topics

    def streams(self, values: Sequence[bytes | str | int | None]) -> list[str | None]:
        """Return the stream's id for what stands in the place of each message; None: no valid one."""
        known: Callable[[Any], str | None] = self._known.get
        found = list(map(known, values))
        if None in found:
            for row, stream in enumerate(found):
                if stream is None:
                    try:
                        found[row] = self._stream(values[row])
                    except BadMessageError:
                        continue
        return found

    def _stream(self, value: Any) -> str:
        stream = self._known.get(value) if type(value) in _HASHED else None
        if stream is None:
            if value is None and self.path is None:
                raise BadMessageError("bad_request", f"the message has no {self._named()}")
            try:
                stream = stream_id_of(self._segment_of(value) if self._place == "topic" else value)
            except ServiceError as exc:
                where = "" if self.path is None else f"the field {self.path.text!r}: "
                raise BadMessageError("bad_request", f"{where}the{exc.problem.removeprefix('The')}") from exc
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            self._known[value] = stream
        return stream

    def _segment_of(self, topic: Any) -> str:
        if self._segment is None:
            return str(topic)
        found = self._segment.fullmatch(topic)
        if found is None:
            raise BadMessageError("bad_request", f"the topic is {topic!r}, which does not fit the filter")
        return found[1]


def _template_of(place: str) -> StreamTemplate | None:
    if not is_template(place):
        return None
    try:
        return StreamTemplate(place)
    except ValueError as exc:
        raise ConnectUsageError(f"{exc}.", fix="Write --stream 'pump-{id}'.") from exc
