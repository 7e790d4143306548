"""`FeedLine`: what a live feed does with its messages, whatever carries them. Does no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from msgspec import Raw

from service.api.context import Context
from service.api.moves import Roster, columns_answer, submit_columns, timestep_of
from service.api.problems import problem_of, status_of
from service.api.sockets import DRAINING, POLICY, TOO_BIG, UNREADABLE
from service.engine.block import Results
from service.engine.models import ServedModel
from service.engine.types import Predictions, StreamDoor, StreamKey
from service.errors import ServiceError
from service.wire import JSON, BulkBody, Format, check_stream_id
from service.wire.answers import step_answer, write_json_step
from service.wire.bodies import Keep, label_for, label_of
from service.wire.fast import NOT_SOUND, StepParts
from service.wire.formats import encode

_REMEMBERED: Final = 4096  # streams
_AHEAD: Final = 256  # messages that may wait for their answers
_AHEAD_BYTES: Final = 4 * 2**20  # of them all; one message may have more, and then waits alone
_NO_LABEL: Final[Mapping[str, Any]] = MappingProxyType({})


class FeedLine:
    """The messages of one feed, and their answers in the same order.

    Attributes:
        form: What messages are written in.
        end: How to close once all in line are answered, or None: it goes on.
    """

    def __init__(
        self,
        context: Context,
        form: Format,
        model: str,
        version: int | None,
        *,
        stream: str | None,
        on_ready: Callable[[], None],
    ) -> None:
        """Begin.

        Args:
            context: The engine and all else.
            form: What messages are written in.
            model: The model's name.
            version: The version that was asked for.
            stream: The stream of this feed; None: every message names its own.
            on_ready: Called, maybe in the midst of a batch, when the first answer in line is known, or the end came.
        """
        self.end: int | None = None
        self._context = context
        self.form = form
        self._model = model
        self._version = version
        self._stream = stream
        self._on_ready = on_ready
        self._line: deque[_Slot] = deque()
        self._bytes = 0  # of the messages in line
        self._roster = Roster("", model)
        self._doors: dict[tuple[str, str | None], StreamDoor] = {}  # of streams that messages named

    @property
    def is_full(self) -> bool:
        """Whether so many answers wait that nothing more should be read."""
        return len(self._line) >= _AHEAD or self._bytes >= _AHEAD_BYTES

    @property
    def is_over(self) -> bool:
        """Whether the end has come, and all in line are answered."""
        return self.end is not None and not self._line

    def take(self, message: bytes, tenant: str) -> None:
        """Submit what a message asks for; the answer goes to its place in line.

        Args:
            message: As it came.
            tenant: Whose streams it is about.
        """
        self._submit(message, tenant)
        self._line[-1].message_bytes = len(message)
        self._bytes += len(message)

    def _submit(self, message: bytes, tenant: str) -> None:
        form = self.form
        try:
            served = self._context.engine.shelf.get(self._model, self._version)
            wire = self._context.wire(served)
            if form is JSON and self._take_plainly(message, tenant, served, wire.read_message):
                return
            asked = wire.feed(message, form, many=self._stream is None)
            if asked.stream is not None:
                check_stream_id(asked.stream)
        except ServiceError as exc:
            self.refuse(exc, label_of(message, form))
            if exc.code == "bad_json":
                self.finish(UNREADABLE)
            return
        body, label = asked.body, label_for(asked.stream, asked.id)
        engine = self._context.engine
        if isinstance(body, BulkBody):
            columns = _Columns(self, label, body, served)
            self._line.append(columns)
            if self._roster.tenant != tenant:
                self._roster = Roster(tenant, self._model)
            submit_columns(engine, body, self._roster, self._version, columns.done, served=served, door="websocket")
        else:
            step = _Step(self, label, chunk=body.chunk, keep=body.keep)
            self._line.append(step)
            key = StreamKey(tenant, self._model, asked.stream or self._stream or "")
            engine.submit(timestep_of(body, key, self._version, door="websocket"), step.done)

    def _take_plainly(
        self,
        message: bytes,
        tenant: str,
        served: ServedModel,
        read: Callable[[bytes], tuple[str | None, Raw | None, StepParts]] | None,
    ) -> bool:
        """Submit a message of the kind that most are: one timestep that says nothing but its number.

        Returns:
            False: It is of another kind, or not sound.
        """
        if read is None:
            return False
        try:
            named, name, (inputs, seq, after, create) = read(message)
        except NOT_SOUND:
            return False
        if seq is None or after is not None or create != "auto" or (named is None) is (self._stream is None):
            return False
        stream = self._doors.get((tenant, named))
        if stream is None:
            if named is not None:
                check_stream_id(named)
            if len(self._doors) >= _REMEMBERED:
                self._doors.clear()
            key = StreamKey(tenant, self._model, named or self._stream or "")
            stream = self._doors[tenant, named] = StreamDoor(key, key.name, self._version, "websocket")
        step = _Step(self, label_for(named, name))
        self._line.append(step)
        self._context.engine.submit_plain(stream, inputs, seq, step.done, served=served)
        return True

    def refuse_large(self, size: int) -> None:
        """Refuse a message that is larger than any may be, and end."""
        limit = self._context.settings.max_body_bytes
        found = f"The message has {size} bytes; at most {limit} are taken."
        self.refuse(ServiceError("too_large", found, fix="Send it in parts."))
        self.finish(TOO_BIG)

    def refuse(self, error: ServiceError, label: Mapping[str, Any] = _NO_LABEL) -> None:
        """Answer a message with a problem."""
        slot = _Slot(self, label)
        self._line.append(slot)
        slot.done(error)

    def forbid(self, error: ServiceError) -> None:
        """Answer with a problem of the socket itself, and end."""
        self.refuse(error)
        self.finish(POLICY)

    def finish(self, close: int) -> None:
        """Close once all in line are answered."""
        if self.end is None:
            self.end = close
        self._on_ready()

    def ready(self) -> list[bytes]:
        """Take the answers that are known and next in line, as they go out."""
        taken: list[bytes] = []
        line, good = self._line, 0
        while line and line[0].result is not None:
            slot = line.popleft()
            self._bytes -= slot.message_bytes
            taken.append(slot.write())
            if isinstance(slot.result, ServiceError):
                self._context.metrics.request("websocket", status_of(slot.result))
            else:
                good += 1
        if good:
            self._context.metrics.request("websocket", 200, good)
        return taken

    # ---------------------------------------------------------------- for the slots

    def settled(self, slot: _Slot) -> None:
        """Hear that a slot's result is known."""
        if self._line[0] is slot:
            self._on_ready()

    def note(self, error: ServiceError) -> None:
        """Count a refusal; one because of draining ends the feed."""
        self._context.metrics.refusal(error.code)
        if error.code == "draining":
            self.finish(DRAINING)


class _Slot:
    """An answer's place in line; by itself it takes a refusal."""

    __slots__ = ("_label", "_line", "message_bytes", "result")

    def __init__(self, line: FeedLine, label: Mapping[str, Any]) -> None:
        self.result: Any = None
        self.message_bytes = 0  # of what it answers
        self._line = line
        self._label = label

    def done(self, result: Any) -> None:
        """Take the result; it is written where it is sent, for this may be called in the midst of a batch."""
        self.result = result
        if isinstance(result, ServiceError):
            self._line.note(result)
        self._line.settled(self)

    def write(self) -> bytes:
        """Return the answer as it goes out."""
        return encode({**self._label, "error": problem_of(self.result)}, self._line.form)


class _Step(_Slot):
    """The place of a step's answer, or a chunk's."""

    __slots__ = ("_chunk", "_keep")

    def __init__(self, line: FeedLine, label: Mapping[str, Any], *, chunk: bool = False, keep: Keep = "all") -> None:
        super().__init__(line, label)
        self._chunk = chunk
        self._keep = keep

    def write(self) -> bytes:
        if isinstance(self.result, ServiceError):
            return super().write()
        form = self._line.form
        if form is JSON and not self._chunk:
            text = write_json_step(self.result)
            return b"%b,%b" % (encode(self._label, JSON)[:-1], text[1:]) if self._label else text
        answer = step_answer(self.result, form, chunk=self._chunk, keep=self._keep)
        return encode({**self._label, **answer} if self._label else answer, form)


class _Columns(_Slot):
    """The place of the answer to columns."""

    __slots__ = ("_body", "_served")

    def __init__(self, line: FeedLine, label: Mapping[str, Any], body: BulkBody, served: ServedModel) -> None:
        super().__init__(line, label)
        self._body = body
        self._served = served

    def done(self, result: Results) -> None:
        for row in () if isinstance(result, Predictions) else result:
            if isinstance(row, ServiceError):
                self._line.note(row)
        super().done(result)

    def write(self) -> bytes:
        form = self._line.form
        return encode({**self._label, **columns_answer(self._body, self.result, self._served, form)}, form)
