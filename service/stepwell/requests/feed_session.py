"""`FeedSession`: the messages of one live feed and their replies, for both feed protocols. Does no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from msgspec import UNSET

from stepwell.codec.request_decoder import RequestDecoder
from stepwell.codec.responses import encode_json_step, step_response
from stepwell.codec.step_bodies import DecodedBulk, DecodedStep, StreamMessage, guess_correlation
from stepwell.codec.typed_decoder import DECODE_ERRORS, SlowBodyError, TypedStep
from stepwell.engine.stepping.outcomes import BulkOutcomes
from stepwell.errors import ServiceError
from stepwell.ids import check_stream_id
from stepwell.models.served import ServedModel
from stepwell.requests.close_codes import DRAINING, POLICY, TOO_BIG, UNREADABLE
from stepwell.requests.context import AppContext
from stepwell.requests.handlers import bulk_document, submit_columns, submit_typed, to_timestep
from stepwell.requests.large_bodies import LargeBodies
from stepwell.requests.problems import problem_document, status_of
from stepwell.store.keys import record_key
from stepwell.types import BulkPrediction, StreamHandle, StreamKey
from stepwell_client.wire.formats import JSON, Format, encode
from stepwell_client.wire.outcomes import ReturnMode

P = TypeVar("P", bound="_PendingReply")
_MAX_CACHED_STREAMS: Final = 4096
_MAX_PENDING: Final = 256  # messages that may wait for their replies
_MAX_PENDING_BYTES: Final = 4 * 2**20  # their total size; a single larger message is accepted if no other waits
_NO_CORRELATION: Final[Mapping[str, Any]] = MappingProxyType({})


def session_type(context: AppContext, traceparent: str | None) -> Callable[..., FeedSession]:
    """Return what creates the session of a feed, with the arguments of `FeedSession`; it may trace the messages.

    Args:
        context: The dependencies of every route.
        traceparent: The header of the request that opened the feed, or None.
    """
    traced = None if context.tracer is None else context.tracer.feed_session(traceparent)
    return FeedSession if traced is None else traced


class FeedSession:
    """The messages of one feed, and their replies in the same order.

    Attributes:
        message_format: The format of messages and replies.
        close_code: The code to close with once all pending messages have been replied to; None: the feed stays open.
    """

    def __init__(
        self,
        context: AppContext,
        message_format: Format,
        model: str,
        version: int | None,
        *,
        stream: str | None,
        on_ready: Callable[[], None],
    ) -> None:
        """Create a session without pending messages.

        Args:
            context: The dependencies of every route.
            message_format: The format of messages and replies.
            model: The model's name.
            version: The requested version, or None: the default.
            stream: The stream of this feed; None: every message names its own.
            on_ready: Called when the reply of the first pending message is ready, or when the session is to be
                closed; it may be called while a batch is completed.
        """
        self.close_code: int | None = None
        self._context = context
        self._models = context.engine.models
        self.message_format = message_format
        self._model = model
        self._version = version
        self._stream = stream
        self._route = f"WS /v1/models/{{model}}{'' if stream is None else '/streams/{stream}'}/feed"
        self._on_ready = on_ready
        self._pending: deque[_PendingReply] = deque()
        self._bytes = 0  # of the pending messages
        self._is_decoding = False  # a large message; the following ones wait, so that the order is kept
        self._handles: dict[tuple[str, str | None], StreamHandle] = {}  # of streams that earlier messages named
        self._generation = -1  # of the served models when the following were looked up
        self._served: ServedModel
        self._decoder: RequestDecoder

    @property
    def name(self) -> str:
        """Model and stream of the feed, for log lines."""
        return f"model={self._model} stream={self._stream or 'any'}"

    @property
    def log_fields(self) -> Mapping[str, str]:
        """The `extra` of log lines about the feed."""
        return {}

    @property
    def is_full(self) -> bool:
        """Whether so many replies are pending that no further message should be read."""
        return len(self._pending) >= _MAX_PENDING or self._bytes >= _MAX_PENDING_BYTES or self._is_decoding

    @property
    def is_drained(self) -> bool:
        """Whether the session is to be closed, and all messages have been replied to."""
        return self.close_code is not None and not self._pending

    def handle_message(self, message: bytes, tenant: str) -> None:
        """Submit a message's timesteps; replies are sent in the order of the messages.

        Args:
            message: The received bytes.
            tenant: The owner of the streams.
        """
        try:
            if self._generation != self._models.generation:
                self._look_up_model()
        except ServiceError as exc:
            self.reject(exc, guess_correlation(message, self.message_format))
        else:
            correlation: dict[str, Any] = {}
            try:
                self._decode_and_submit(message, tenant, correlation)
            except ServiceError as exc:
                self.reject(exc, correlation)
                self._refused(exc, tenant, correlation)
        self._pending[-1].message_bytes = len(message)
        self._bytes += len(message)

    def _refused(self, error: ServiceError, tenant: str, correlation: Mapping[str, Any]) -> None:
        self._context.engine.observer.refused(tenant, self._model, self._stream or correlation.get("stream"), error)
        if error.code == "bad_json":
            self.close_after_replies(UNREADABLE)

    def _look_up_model(self) -> None:
        generation = self._models.generation  # read first: what is cached for a generation must come from its models
        self._served = self._models.get(self._model, self._version)
        self._decoder, self._generation = self._context.decoder(self._served), generation

    def _decode_and_submit(self, message: bytes, tenant: str, correlation: dict[str, Any]) -> None:
        """Submit a message's timesteps.

        Raises:
            ServiceError: The message is rejected; `correlation` has the first fields of the reply.
        """
        decoder, many = self._decoder.on_loop, self._stream is None
        if LargeBodies.is_large(message):
            self._decode_in_thread(message, tenant, correlation)
            return
        read = decoder.read_stream_message if many else decoder.read_message
        is_other = b'"chunk"' in message or (many and b'"streams"' in message)
        if not (read is None or is_other or self.message_format is not JSON):  # most messages have a single timestep
            try:
                typed = read(message)
            except DECODE_ERRORS:
                pass
            else:
                self._submit_typed(typed, tenant, correlation)
                return
        try:
            decoded = decoder.feed(message, self.message_format, correlation, many=many)
        except SlowBodyError:
            self._decode_in_thread(message, tenant, correlation)
            return
        self._submit_decoded(decoded, tenant, correlation)

    def _decode_in_thread(self, message: bytes, tenant: str, correlation: dict[str, Any]) -> None:
        decoder, large = self._decoder, self._append(_PendingLarge(self, correlation))
        self._is_decoding = True

        def decode() -> DecodedStep | DecodedBulk:
            return decoder.feed(message, self.message_format, correlation, many=self._stream is None)

        def submit(decoded: DecodedStep | DecodedBulk) -> None:
            self._is_decoding = False
            self._submit_decoded(decoded, tenant, correlation, large)
            self._on_ready()

        def fail(error: ServiceError) -> None:
            self._is_decoding = False
            self._refused(error, tenant, correlation)
            large.on_result(error)
            self._on_ready()

        self._context.large_bodies.submit(decode, submit, fail)

    def _submit_decoded(
        self,
        decoded: DecodedStep | DecodedBulk,
        tenant: str,
        correlation: dict[str, Any],
        large: _PendingLarge | None = None,
    ) -> None:
        served, engine = self._served, self._context.engine
        if isinstance(decoded, DecodedBulk):
            bulk = self._append(_PendingBulk(self, correlation, decoded, served), large)
            submit_columns(
                engine,
                decoded,
                self._version,
                bulk.on_result,
                checked_ids=self._decoder.checked_ids,
                tenant=tenant,
                served=served,
                transport="websocket",
            )
        else:
            body = decoded.body
            key = self._handle(tenant, body.stream if isinstance(body, StreamMessage) else None).key
            step = self._append(
                _PendingTimestep(self, correlation)
                if self.message_format is JSON and not decoded.chunk
                else _PendingStep(self, correlation, chunk=decoded.chunk, keep=decoded.keep),
                large,
            )
            engine.steps.submit(to_timestep(decoded, key, self._version, transport="websocket"), step.on_result, served)

    def _submit_typed(self, typed: TypedStep, tenant: str, correlation: dict[str, Any]) -> None:
        body: Any = typed[0]  # a `FeedMessage`, or a `StreamMessage` if the feed is for many streams
        stream = None
        if self._stream is None:
            stream = correlation["stream"] = body.stream
        if body.id is not UNSET:
            correlation["id"] = body.id
        handle = self._handles.get((tenant, stream)) or self._handle(tenant, stream)
        step = _PendingTimestep(self, correlation)
        self._pending.append(step)
        submit_typed(self._context.engine, typed, handle, step.on_result, served=self._served)

    def _append(self, pending: P, large: _PendingLarge | None = None) -> P | _PendingLarge:
        """Append a pending reply, or give it to the one of its large message, and return what gets the result."""
        if large is not None:
            large.reply = pending
            return large
        self._pending.append(pending)
        return pending

    def _handle(self, tenant: str, stream: str | None) -> StreamHandle:
        """Return the handle of the stream that a message names, or of that of the feed.

        Raises:
            ServiceError: `bad_request`: the stream id is not valid.
        """
        handle = self._handles.get((tenant, stream))
        if handle is None:
            if stream is not None:
                check_stream_id(stream)
            if len(self._handles) >= _MAX_CACHED_STREAMS:
                self._handles.clear()
            key = StreamKey(tenant, self._model, stream or self._stream or "")
            handle = self._handles[tenant, stream] = StreamHandle(key, record_key(*key), self._version, "websocket")
        return handle

    def reject_too_large(self, size: int) -> None:
        """Reject a message that is larger than `max_body_bytes`, then close."""
        limit = self._context.settings.max_body_bytes
        problem = f"The message has {size} bytes; at most {limit} are accepted."
        self.reject(ServiceError("too_large", problem, fix="Send it in parts, or raise `max_body_bytes`."))
        self.close_after_replies(TOO_BIG)

    def reject(self, error: ServiceError, correlation: Mapping[str, Any] = _NO_CORRELATION) -> None:
        """Reply to a message with a problem."""
        pending = _PendingReply(self, correlation)
        self._pending.append(pending)
        pending.on_result(error)

    def reject_and_close(self, error: ServiceError) -> None:
        """Send a problem of the socket itself, then close."""
        self.reject(error)
        self.close_after_replies(POLICY)

    def close_after_replies(self, code: int) -> None:
        """Close once all pending messages have been replied to."""
        if self.close_code is None:
            self.close_code = code
        self._on_ready()

    def pop_ready(self) -> list[bytes]:
        """Remove and return the encoded replies that are ready, as far as no earlier one is missing."""
        replies: list[bytes] = []
        queue, n_ok = self._pending, 0
        while queue and queue[0].result is not None:
            pending = queue.popleft()
            self._bytes -= pending.message_bytes
            replies.append(pending.encode())
            if isinstance(pending.result, ServiceError):
                self._context.metrics.request("websocket", status_of(pending.result), self._route)
            else:
                n_ok += 1
        if n_ok:
            self._context.metrics.request("websocket", 200, self._route, n_ok)
        return replies

    # ---------------------------------------------------------------- for the pending replies

    def on_reply(self, pending: _PendingReply) -> None:
        """Report that a pending reply has its result."""
        if self._pending[0] is pending:
            self._on_ready()

    def count_refusal(self, error: ServiceError) -> None:
        """Count an error; `draining` also closes the feed."""
        self._context.metrics.refusal(error.code)
        if error.code == "draining":
            self.close_after_replies(DRAINING)


class _PendingReply:
    """One pending reply. This base class encodes errors only; the subclasses encode results."""

    __slots__ = ("_correlation", "_session", "message_bytes", "result")

    def __init__(self, session: FeedSession, correlation: Mapping[str, Any]) -> None:
        self.result: Any = None
        self.message_bytes = 0  # of the message that it is the reply to
        self._session = session
        self._correlation = correlation

    def on_result(self, result: Any) -> None:
        """Store the result. It is encoded when it is sent: this may be called while a batch is completed."""
        self.result = result
        if isinstance(result, ServiceError):
            self._session.count_refusal(result)
        self._session.on_reply(self)

    def encode(self) -> bytes:
        """Return the encoded reply."""
        return encode({**self._correlation, "error": problem_document(self.result)}, self._session.message_format)


class _PendingLarge(_PendingReply):
    """The pending reply to a large message; once that is decoded, it has the pending reply to its content."""

    __slots__ = ("reply",)

    def __init__(self, session: FeedSession, correlation: Mapping[str, Any]) -> None:
        super().__init__(session, correlation)
        self.reply: _PendingReply | None = None

    def on_result(self, result: Any) -> None:
        if self.reply is None:
            super().on_result(result)
            return
        self.reply.on_result(result)
        self.result = result
        self._session.on_reply(self)

    def encode(self) -> bytes:
        return super().encode() if self.reply is None else self.reply.encode()


class _PendingTimestep(_PendingReply):
    """The pending reply, in JSON, to a single timestep."""

    __slots__ = ()

    def encode(self) -> bytes:
        if isinstance(self.result, ServiceError):
            return super().encode()
        body = encode_json_step(self.result)
        return b"%b,%b" % (encode(self._correlation, JSON)[:-1], body[1:]) if self._correlation else body


class _PendingStep(_PendingReply):
    """The pending reply to a chunk, or in msgpack to a step."""

    __slots__ = ("_chunk", "_keep")

    def __init__(self, session: FeedSession, correlation: Mapping[str, Any], *, chunk: bool, keep: ReturnMode) -> None:
        super().__init__(session, correlation)
        self._chunk = chunk
        self._keep = keep

    def encode(self) -> bytes:
        if isinstance(self.result, ServiceError):
            return super().encode()
        message_format = self._session.message_format
        document = step_response(self.result, message_format, chunk=self._chunk, keep=self._keep)
        return encode({**self._correlation, **document}, message_format)


class _PendingBulk(_PendingReply):
    """The pending reply to a bulk request."""

    __slots__ = ("_body", "_served")

    def __init__(
        self, session: FeedSession, correlation: Mapping[str, Any], body: DecodedBulk, served: ServedModel
    ) -> None:
        super().__init__(session, correlation)
        self._body = body
        self._served = served

    def on_result(self, result: BulkOutcomes) -> None:
        for error in () if isinstance(result, BulkPrediction) else result.errors.values():
            self._session.count_refusal(error)
        super().on_result(result)

    def encode(self) -> bytes:
        message_format = self._session.message_format
        return encode(
            {**self._correlation, **bulk_document(self._body, self.result, self._served, message_format)},
            message_format,
        )
