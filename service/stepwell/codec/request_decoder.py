"""`RequestDecoder`: decodes request bodies for one model, fast if they are valid, with exact errors if not.

The fast path is typed decoders and NumPy. A body that it rejects, for whatever reason, is decoded again by the strict
path, which either accepts it or gives the exact error: the strict path alone defines what is a valid body. A property
test checks that both paths agree.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from copy import copy
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from msgspec import UNSET

from stepwell.codec.sources import check_source, sources_of
from stepwell.codec.step_bodies import (
    BulkBody,
    BulkMessage,
    BulkStepsBody,
    DecodedBulk,
    DecodedRun,
    DecodedStep,
    FeedMessage,
    PeekBody,
    RunBody,
    StepBody,
    StepsBody,
    StreamMessage,
    correlation_of,
)
from stepwell.codec.stream_lists import StreamListCache
from stepwell.codec.strict.decoder import StrictDecoder
from stepwell.codec.strict.parse import bad_request, preview
from stepwell.codec.typed_decoder import (
    DECODE_ERRORS,
    NotTypedError,
    TypedInputsDecoder,
    TypedStep,
    TypedStepDecoder,
    reject_duplicate_entries,
    reject_duplicate_keys,
)
from stepwell.errors import ServiceError
from stepwell.ids import bad_stream_id
from stepwell_client.wire.formats import JSON, MSGPACK, Format
from stepwell_client.wire.ids import is_stream_id
from stepwell_client.wire.texts import counted
from stepwell_export.runtime.manifest import Array, Manifest

B = TypeVar("B", bound=msgspec.Struct)
STRICT_BYTES: Final = 4096
"""At most so many bytes are decoded strictly on the event loop: a microsecond for each, if each row has an error."""

ReadStep = Callable[[bytes], TypedStep]


class RequestDecoder:
    """Decodes request bodies for one model.

    Attributes:
        manifest: The model's manifest.
        stream_lists: The lists of streams of earlier bulk bodies.
        strict: The strict path, for bodies that one of the following has rejected.
        on_loop: The same for the event loop: instead of decoding more than `STRICT_BYTES` strictly, it raises
            `SlowBodyError`.
        read_step: Decodes valid JSON bodies of a step to packed bytes, without arrays; None if the model has no such
            decoder. It raises one of `DECODE_ERRORS` for all others.
        read_message: The same for messages of the feed of one stream without `chunk`.
        read_stream_message: The same for messages of a feed for many streams without `chunk` and `streams`.
    """

    def __init__(self, manifest: Manifest, *, max_chunk_steps: int = 4096, max_streams: int = 10_000) -> None:
        """Create the decoder of a model.

        Args:
            manifest: The model's manifest.
            max_chunk_steps: Most timesteps of one stream in a body.
            max_streams: Most streams in a body.
        """
        self.manifest = manifest
        self.stream_lists = StreamListCache()
        self.strict = StrictDecoder(manifest.inputs)
        self.read_step: ReadStep | None = None
        self.read_message: ReadStep | None = None
        self.read_stream_message: ReadStep | None = None
        self._max_steps = max_chunk_steps
        self._max_streams = max_streams
        self._typed_inputs = TypedInputsDecoder(manifest.inputs)
        self.on_loop = self
        with contextlib.suppress(ValueError):  # an input's name cannot be the name of a decoder's field
            self.read_step = TypedStepDecoder(manifest.inputs, StepBody).read
            self.read_message = TypedStepDecoder(manifest.inputs, FeedMessage).read
            self.read_stream_message = TypedStepDecoder(manifest.inputs, StreamMessage).read
        self.on_loop = copy(self)
        self.on_loop.strict = StrictDecoder(manifest.inputs, max_bytes=STRICT_BYTES)

    def step(self, body: bytes, body_format: Format) -> DecodedStep:
        """Decode the body of a step: one timestep of one stream.

        Raises:
            ServiceError: `bad_json`, `bad_request`, `bad_input` or `non_finite`.
        """
        return self._decode_step(body, body_format, StepBody, chunk=False)

    def steps(self, body: bytes, body_format: Format) -> DecodedStep:
        """Decode the body of a chunk: T timesteps of one stream.

        Raises:
            ServiceError: As for `step`, and `too_large`.
        """
        return self._decode_step(body, body_format, StepsBody, chunk=True)

    def peek(self, body: bytes, body_format: Format) -> DecodedStep:
        """Decode the body of a peek: that of a step or, with `chunk`, of a chunk.

        Raises:
            ServiceError: As for `steps`.
        """
        step = self._decode_step(body, body_format, PeekBody, chunk=False)
        if step.body.source is not UNSET:
            bad_request("The body has a `source`; a peek applies nothing, so it takes none.")
        return step

    def bulk(self, body: bytes, body_format: Format, *, chunk: bool) -> DecodedBulk:
        """Decode columns: one timestep or, with `chunk`, T timesteps, of many streams.

        An error of a single row is not raised; it is in `faults` of the result.

        Raises:
            ServiceError: As for `steps`.
        """
        body_type = BulkStepsBody if chunk else BulkBody
        try:
            bulk = self._bulk(_decode(body, body_format, body_type), body, body_format, chunk=chunk)
        except DECODE_ERRORS:
            bulk = self.strict.bulk(body, body_format, body_type, chunk=chunk)
        return self._checked_bulk(bulk, body_format)

    def run(self, body: bytes, body_format: Format) -> DecodedRun:
        """Decode timesteps whose states are in the body; an error of a single row of columns is in `faults`.

        Raises:
            ServiceError: `bad_json`, `bad_request`, `bad_input`, `non_finite` or `too_large`.
        """
        try:
            decoded = self._run(_decode(body, body_format, RunBody), body, body_format)
        except DECODE_ERRORS:
            decoded = self.strict.run(body, body_format)
        if not decoded.states:
            _reject_columns("`state` is empty; expected at least one state, or null.")
        self._check_rows(len(decoded.states), "states")
        return decoded

    def feed(
        self, message: bytes, message_format: Format, correlation: dict[str, Any], *, many: bool
    ) -> DecodedStep | DecodedBulk:
        """Decode a message of a feed.

        Args:
            message: The message.
            message_format: Its format.
            correlation: Is filled with the first fields of the reply, also if the message is rejected.
            many: The feed is for many streams, so each message contains its stream or streams.

        Raises:
            ServiceError: As for `steps`.
        """
        columns = many and b"streams" in message  # a guess: if it is wrong, the strict path decodes the message
        decoded: DecodedStep | DecodedBulk
        try:
            if columns:
                bulk = _decode(message, message_format, BulkMessage)
                decoded = self._bulk(bulk, message, message_format, chunk=_chunk(bulk))
            else:
                step = _decode(message, message_format, StreamMessage if many else FeedMessage)
                decoded = self._step(step, message, message_format, chunk=_chunk(step))
        except DECODE_ERRORS:
            return self.feed_strictly(message, message_format, correlation, many=many)
        correlation |= correlation_of(decoded.body)
        return self._checked_message(decoded, message_format)

    def feed_strictly(
        self, message: bytes, message_format: Format, correlation: dict[str, Any], *, many: bool
    ) -> DecodedStep | DecodedBulk:
        """Decode, by the strict path alone, a message of a feed that `read_message` has rejected; see `feed`."""
        decoded = self.strict.message(message, message_format, correlation, many=many)
        return self._checked_message(decoded, message_format)

    # ---------------------------------------------------------------- the fast path

    def _decode_step(self, body: bytes, body_format: Format, body_type: type[StepBody], *, chunk: bool) -> DecodedStep:
        try:
            envelope = _decode(body, body_format, body_type)
            if isinstance(envelope, PeekBody):
                chunk = _chunk(envelope)
            step = self._step(envelope, body, body_format, chunk=chunk)
        except DECODE_ERRORS:
            step = self.strict.step(body, body_format, body_type, chunk=chunk)
        return self._checked(step)

    def _step(self, envelope: StepBody, body: bytes, body_format: Format, *, chunk: bool) -> DecodedStep:
        inputs, colons = self._typed_inputs.read(envelope.inputs, body_format, 1 if chunk else 0)
        if body_format is JSON:
            reject_duplicate_keys(body, envelope, colons, len(inputs) if colons else 0)
        else:
            reject_duplicate_entries(body, envelope)
        if chunk:
            _check_not_empty(inputs, axis=0)
        step = DecodedStep(envelope, inputs, chunk)
        check_source(envelope.source, step.length)
        return step

    def _bulk(self, envelope: BulkBody, body: bytes, body_format: Format, *, chunk: bool) -> DecodedBulk:
        inputs, colons = self._typed_inputs.read(envelope.inputs, body_format, 2 if chunk else 1)
        if body_format is JSON:
            reject_duplicate_keys(body, envelope, colons, len(inputs) if colons else 0)
        else:
            reject_duplicate_entries(body, envelope)
        if any(len(column) != len(envelope.streams) for column in inputs.values()):
            raise NotTypedError
        if not chunk:
            inputs = {name: column[:, None] for name, column in inputs.items()}
        _check_not_empty(inputs, axis=1)
        return DecodedBulk(envelope, inputs, chunk)

    def _run(self, envelope: RunBody, body: bytes, body_format: Format) -> DecodedRun:
        inputs, colons = self._typed_inputs.read(envelope.inputs, body_format, 1 if envelope.is_columns else 0)
        if body_format is JSON:
            reject_duplicate_keys(body, envelope, colons, len(inputs) if colons else 0)
        else:
            reject_duplicate_entries(body, envelope)
        decoded = DecodedRun(envelope, {name: column[:, None] for name, column in inputs.items()})
        if any(len(column) != len(decoded.states) for column in inputs.values()):
            raise NotTypedError
        return decoded

    # ---------------------------------------------------------------- both paths

    def _checked(self, step: DecodedStep) -> DecodedStep:
        """Check the number of timesteps, and return the body."""
        if step.chunk:
            self._check_length(step.inputs, axis=0)
        return step

    def _checked_message(self, message: DecodedStep | DecodedBulk, body_format: Format) -> DecodedStep | DecodedBulk:
        if isinstance(message, DecodedBulk):
            return self._checked_bulk(message, body_format)
        return self._checked(message)

    def _checked_bulk(self, bulk: DecodedBulk, body_format: Format) -> DecodedBulk:
        """Check the columns as a whole, and return the body; an invalid stream id becomes a fault of its row."""
        self._check_length(bulk.inputs, axis=1)
        body = bulk.body
        streams = body.streams
        count = len(streams)
        if count == 0:
            _reject_columns("`streams` is empty; expected at least one stream id.")
        self._check_rows(count, "streams")
        for name, column in (("seq", body.seq), ("after", body.after)):
            if column is not UNSET and len(column) != count:
                _reject_columns(
                    f"`{name}` has {counted(len(column), 'entry', 'entries')} for {counted(count, 'stream')}; "
                    "expected one for each."
                )
        bulk.sources = sources_of(body.source, count, body_format, bulk.length, chunk=bulk.chunk)
        if self.stream_lists.has(streams):
            return bulk
        if len(set(streams)) != count:
            stream, occurrences = Counter(streams).most_common(1)[0]
            _reject_columns(f"Stream {preview(stream)} occurs {occurrences} times; expected each stream once.")
        invalid = [i for i, stream in enumerate(streams) if not is_stream_id(stream)]
        for i in invalid:
            bulk.faults.setdefault(i, bad_stream_id(streams[i]))
        if not invalid:
            self.stream_lists.add(streams)
        return bulk

    def _check_rows(self, count: int, what: str) -> None:
        if count > self._max_streams:
            raise ServiceError(
                "too_large",
                f"The body has {count} {what}; at most {self._max_streams} are allowed.",
                fix="Send them in parts, or raise `queue_limit`.",
            )

    def _check_length(self, inputs: dict[str, Array], *, axis: int) -> None:
        """Check that T is the same for all inputs, and not too large."""
        lengths = {name: array.shape[axis] for name, array in inputs.items()}
        length: int = next(iter(lengths.values()))
        if any(other != length for other in lengths.values()):
            raise ServiceError(
                "bad_input",
                f"Inputs have different numbers of timesteps: {lengths}; expected the same for each.",
                fix="Send one row per timestep in every input.",
            )
        if length > self._max_steps:
            raise ServiceError(
                "too_large",
                f"The chunk has {length} timesteps; at most {self._max_steps} are allowed.",
                fix="Send it in parts, or raise `max_chunk_steps`.",
            )


_MODULES = {JSON: msgspec.json, MSGPACK: msgspec.msgpack}
_DECODERS: dict[tuple[Format, type[msgspec.Struct]], Callable[[bytes], Any]] = {
    (body_format, body_type): module.Decoder(body_type).decode
    for body_format, module in _MODULES.items()
    for body_type in (
        StepBody,
        StepsBody,
        PeekBody,
        FeedMessage,
        StreamMessage,
        BulkBody,
        BulkStepsBody,
        BulkMessage,
        RunBody,
    )
}


def _decode(body: bytes, body_format: Format, body_type: type[B]) -> B:
    decoded: B = _DECODERS[body_format, body_type](body)
    return decoded


def _chunk(envelope: PeekBody | BulkMessage) -> bool:
    chunk = envelope.chunk is True
    if envelope.keep is not UNSET and not chunk:
        raise NotTypedError
    return chunk


def _check_not_empty(inputs: dict[str, Array], *, axis: int) -> None:
    if any(array.shape[axis] == 0 for array in inputs.values()):
        raise NotTypedError


def _reject_columns(problem: str) -> NoReturn:
    raise ServiceError("bad_input", problem, fix="Send one entry per stream in every column.")
