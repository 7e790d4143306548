"""`FeedSession`: what a live feed does with its messages, whatever carries them. Does no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from msgspec import Raw

from service.codec import JSON, BulkBody, Format
from service.codec.envelopes import correlation_fields, guess_correlation
from service.codec.formats import encode
from service.codec.responses import encode_json_step, step_response
from service.codec.typed_decoder import DECODE_ERRORS, StepParts
from service.engine.stepping.columnar_batch import BulkOutcomes
from service.errors import ServiceError
from service.ids import check_stream_id
from service.models.registry import ServedModel
from service.requests.bulk import StreamKeyCache, bulk_document, submit_columns, to_timestep
from service.requests.close_codes import DRAINING, POLICY, TOO_BIG, UNREADABLE
from service.requests.context import AppContext
from service.requests.problems import problem_document, status_of
from service.store.keys import record_key
from service.types import BulkPrediction, ReturnMode, StreamHandle, StreamKey

_MAX_CACHED_STREAMS: Final = 4096  # streams
_MAX_PENDING: Final = 256  # messages that may wait for their answers
_AHEAD_BYTES: Final = 4 * 2**20  # of them all; one message may have more, and then waits alone
_NO_CORRELATION: Final[Mapping[str, Any]] = MappingProxyType({})


class FeedSession:
    """The messages of one feed, and their answers in the same order.

    Attributes:
        form: What messages are written in.
        end: How to close once all in line are answered, or None: it goes on.
    """

    def __init__(
        self,
        context: AppContext,
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
        self.close_code: int | None = None
        self._context = context
        self.message_format = form
        self._model = model
        self._version = version
        self._stream = stream
        self._on_ready = on_ready
        self._pending: deque[_PendingReply] = deque()
        self._bytes = 0  # of the messages in line
        self._stream_keys = StreamKeyCache("", model)
        self._handles: dict[tuple[str, str | None], StreamHandle] = {}  # of streams that messages named

    @property
    def is_full(self) -> bool:
        """Whether so many answers wait that nothing more should be read."""
        return len(self._pending) >= _MAX_PENDING or self._bytes >= _AHEAD_BYTES

    @property
    def is_drained(self) -> bool:
        """Whether the end has come, and all in line are answered."""
        return self.close_code is not None and not self._pending

    def handle_message(self, message: bytes, tenant: str) -> None:
        """Submit what a message asks for; the answer goes to its place in line.

        Args:
            message: As it came.
            tenant: Whose streams it is about.
        """
        self._submit(message, tenant)
        self._pending[-1].message_bytes = len(message)
        self._bytes += len(message)

    def _submit(self, message: bytes, tenant: str) -> None:
        form = self.message_format
        try:
            served = self._context.engine.models.get(self._model, self._version)
            wire = self._context.decoder(served)
            if form is JSON and self._handle_single(message, tenant, served, wire.read_feed_message):
                return
            asked = wire.feed(message, form, many=self._stream is None)
            if asked.stream is not None:
                check_stream_id(asked.stream)
        except ServiceError as exc:
            self.reject(exc, guess_correlation(message, form))
            if exc.code == "bad_json":
                self.close_after_replies(UNREADABLE)
            return
        body, label = asked.body, correlation_fields(asked.stream, asked.id)
        engine = self._context.engine
        if isinstance(body, BulkBody):
            columns = _PendingBulk(self, label, body, served)
            self._pending.append(columns)
            if self._stream_keys.tenant != tenant:
                self._stream_keys = StreamKeyCache(tenant, self._model)
            submit_columns(
                engine, body, self._stream_keys, self._version, columns.on_result, served=served, transport="websocket"
            )
        else:
            step = _PendingStep(self, label, chunk=body.chunk, keep=body.keep)
            self._pending.append(step)
            key = StreamKey(tenant, self._model, asked.stream or self._stream or "")
            engine.submit(to_timestep(body, key, self._version, transport="websocket"), step.on_result, served)

    def _handle_single(
        self,
        message: bytes,
        tenant: str,
        served: ServedModel,
        read: Callable[[bytes], tuple[str | None, Raw | None, StepParts]] | None,
    ) -> bool:
        """Submit a message with a single timestep of an existing or new stream, as most are.

        Returns:
            False: It is of another kind, or not sound.
        """
        if read is None:
            return False
        try:
            named, name, (inputs, seq, after, create) = read(message)
        except DECODE_ERRORS:
            return False
        if create != "auto" or (named is None) is (self._stream is None):
            return False
        stream = self._handles.get((tenant, named))
        if stream is None:
            if named is not None:
                check_stream_id(named)
            if len(self._handles) >= _MAX_CACHED_STREAMS:
                self._handles.clear()
            key = StreamKey(tenant, self._model, named or self._stream or "")
            stream = self._handles[tenant, named] = StreamHandle(key, record_key(*key), self._version, "websocket")
        step = _PendingStep(self, correlation_fields(named, name))
        self._pending.append(step)
        self._context.engine.submit_single(stream, inputs, seq, after, step.on_result, served=served)
        return True

    def reject_too_large(self, size: int) -> None:
        """Refuse a message that is larger than any may be, and end."""
        limit = self._context.settings.max_body_bytes
        found = f"The message has {size} bytes; at most {limit} are taken."
        self.reject(ServiceError("too_large", found, fix="Send it in parts."))
        self.close_after_replies(TOO_BIG)

    def reject(self, error: ServiceError, label: Mapping[str, Any] = _NO_CORRELATION) -> None:
        """Answer a message with a problem."""
        slot = _PendingReply(self, label)
        self._pending.append(slot)
        slot.on_result(error)

    def reject_and_close(self, error: ServiceError) -> None:
        """Answer with a problem of the socket itself, and end."""
        self.reject(error)
        self.close_after_replies(POLICY)

    def close_after_replies(self, close: int) -> None:
        """Close once all in line are answered."""
        if self.close_code is None:
            self.close_code = close
        self._on_ready()

    def pop_ready(self) -> list[bytes]:
        """Take the answers that are known and next in line, as they go out."""
        taken: list[bytes] = []
        line, good = self._pending, 0
        while line and line[0].result is not None:
            slot = line.popleft()
            self._bytes -= slot.message_bytes
            taken.append(slot.encode())
            if isinstance(slot.result, ServiceError):
                self._context.metrics.request("websocket", status_of(slot.result))
            else:
                good += 1
        if good:
            self._context.metrics.request("websocket", 200, good)
        return taken

    # ---------------------------------------------------------------- for the slots

    def on_reply(self, slot: _PendingReply) -> None:
        """Hear that a slot's result is known."""
        if self._pending[0] is slot:
            self._on_ready()

    def count_refusal(self, error: ServiceError) -> None:
        """Count a refusal; one because of draining ends the feed."""
        self._context.metrics.refusal(error.code)
        if error.code == "draining":
            self.close_after_replies(DRAINING)


class _PendingReply:
    """An answer's place in line; by itself it takes a refusal."""

    __slots__ = ("_correlation", "_session", "message_bytes", "result")

    def __init__(self, line: FeedSession, label: Mapping[str, Any]) -> None:
        self.result: Any = None
        self.message_bytes = 0  # of what it answers
        self._session = line
        self._correlation = label

    def on_result(self, result: Any) -> None:
        """Take the result; it is written where it is sent, for this may be called in the midst of a batch."""
        self.result = result
        if isinstance(result, ServiceError):
            self._session.count_refusal(result)
        self._session.on_reply(self)

    def encode(self) -> bytes:
        """Return the answer as it goes out."""
        return encode({**self._correlation, "error": problem_document(self.result)}, self._session.message_format)


class _PendingStep(_PendingReply):
    """The place of a step's answer, or a chunk's."""

    __slots__ = ("_chunk", "_keep")

    def __init__(
        self, line: FeedSession, label: Mapping[str, Any], *, chunk: bool = False, keep: ReturnMode = "all"
    ) -> None:
        super().__init__(line, label)
        self._chunk = chunk
        self._keep = keep

    def encode(self) -> bytes:
        if isinstance(self.result, ServiceError):
            return super().encode()
        form = self._session.message_format
        if form is JSON and not self._chunk:
            text = encode_json_step(self.result)
            return b"%b,%b" % (encode(self._correlation, JSON)[:-1], text[1:]) if self._correlation else text
        answer = step_response(self.result, form, chunk=self._chunk, keep=self._keep)
        return encode({**self._correlation, **answer} if self._correlation else answer, form)


class _PendingBulk(_PendingReply):
    """The place of the answer to columns."""

    __slots__ = ("_body", "_served")

    def __init__(self, line: FeedSession, label: Mapping[str, Any], body: BulkBody, served: ServedModel) -> None:
        super().__init__(line, label)
        self._body = body
        self._served = served

    def on_result(self, result: BulkOutcomes) -> None:
        for row in () if isinstance(result, BulkPrediction) else result:
            if isinstance(row, ServiceError):
                self._session.count_refusal(row)
        super().on_result(result)

    def encode(self) -> bytes:
        form = self._session.message_format
        return encode({**self._correlation, **bulk_document(self._body, self.result, self._served, form)}, form)
