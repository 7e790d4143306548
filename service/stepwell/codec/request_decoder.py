"""`RequestDecoder`: decodes request bodies for one model, with exact errors if they are not valid.

Typed decoders and NumPy define what is a valid body. One that they refuse is parsed once more, by `FaultFinder`, which
only words the error.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from typing import Any, Final, NoReturn

import msgspec
from msgspec import UNSET

from stepwell.codec.checked_stream_ids import CheckedStreamIds
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
    StepOptions,
    StepsBody,
    StreamMessage,
    correlation_of,
)
from stepwell.codec.strict.faults import FaultFinder
from stepwell.codec.strict.parse import bad_request, preview
from stepwell.codec.typed_decoder import (
    DECODE_ERRORS,
    NotTypedError,
    SlowBodyError,
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

STRICT_BYTES: Final = 4096
"""At most so many bytes are parsed for the words of errors on the event loop: a microsecond for each, if each row has
one."""

ReadStep = Callable[[bytes], TypedStep]


class RequestDecoder:
    """Decodes request bodies for one model.

    Attributes:
        manifest: The model's manifest.
        checked_ids: The lists of streams of earlier bulk bodies.
        on_loop: The same for the event loop: instead of parsing more than `STRICT_BYTES` for the words of an error, or
            decoding as much row by row, it raises `SlowBodyError`.
        read_step: Decodes most JSON bodies of a step to packed bytes, without arrays; None if the model has no such
            decoder. It raises one of `DECODE_ERRORS` for all others, which `step` decodes.
        read_message: The same for messages of the feed of one stream without `chunk`; `feed` decodes the others.
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
        self.checked_ids = CheckedStreamIds()
        self.read_step: ReadStep | None = None
        self.read_message: ReadStep | None = None
        self.read_stream_message: ReadStep | None = None
        self._max_steps = max_chunk_steps
        self._max_streams = max_streams
        self._max_bytes = math.inf
        self._inputs = TypedInputsDecoder(manifest.inputs)
        self._faults = FaultFinder(manifest.inputs)
        self.on_loop = self
        with contextlib.suppress(ValueError):  # an input's name cannot be the name of a decoder's field
            self.read_step = TypedStepDecoder(manifest.inputs, StepBody).read
            self.read_message = TypedStepDecoder(manifest.inputs, FeedMessage).read
            self.read_stream_message = TypedStepDecoder(manifest.inputs, StreamMessage).read
        self.on_loop = copy(self)
        self.on_loop._inputs = TypedInputsDecoder(manifest.inputs, max_bytes=STRICT_BYTES)
        self.on_loop._max_bytes = STRICT_BYTES

    def step(self, body: bytes, body_format: Format) -> DecodedStep:
        """Decode the body of a step: one timestep of one stream.

        Raises:
            ServiceError: `bad_json`, `bad_request`, `bad_input` or `non_finite`.
        """
        return self._step(body, body_format, StepBody)

    def steps(self, body: bytes, body_format: Format) -> DecodedStep:
        """Decode the body of a chunk: T timesteps of one stream.

        Raises:
            ServiceError: As for `step`, and `too_large`.
        """
        return self._step(body, body_format, StepsBody, chunk=True)

    def peek(self, body: bytes, body_format: Format) -> DecodedStep:
        """Decode the body of a peek: that of a step or, with `chunk`, of a chunk.

        Raises:
            ServiceError: As for `steps`.
        """
        step = self._step(body, body_format, PeekBody)
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
        decoded = self._decode(body, body_format, (body_type,), chunk=chunk)
        return self._checked_bulk(decoded, body_format)

    def run(self, body: bytes, body_format: Format) -> DecodedRun:
        """Decode timesteps whose states are in the body; an error of a single row of columns is in `faults`.

        Raises:
            ServiceError: `bad_json`, `bad_request`, `bad_input`, `non_finite` or `too_large`.
        """
        decoded: DecodedRun = self._decode(body, body_format, (RunBody,))
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
        kinds: tuple[type[StepOptions], ...] = (FeedMessage,)
        if many:  # the first one is a guess
            kinds = (BulkMessage, StreamMessage) if b"streams" in message else (StreamMessage, BulkMessage)
        decoded = self._decode(message, message_format, kinds, correlation=correlation)
        if isinstance(decoded, DecodedBulk):
            return self._checked_bulk(decoded, message_format)
        return self._checked(decoded)

    def _step(self, body: bytes, body_format: Format, body_type: type[StepBody], *, chunk: bool = False) -> DecodedStep:
        return self._checked(self._decode(body, body_format, (body_type,), chunk=chunk))

    def _decode(
        self,
        body: bytes,
        body_format: Format,
        kinds: Sequence[type[StepOptions | RunBody]],
        *,
        chunk: bool = False,
        correlation: dict[str, Any] | None = None,
    ) -> Any:
        """Decode a body of one of some kinds.

        Args:
            body: The body.
            body_format: Its format.
            kinds: What it may be, the most probable one first.
            chunk: Whether the inputs have a time axis, unless the body has a field for that.
            correlation: That of a message, which is filled.

        Raises:
            ServiceError: What is wrong with it.
        """
        try:
            return self._read(body, body_format, kinds, chunk=chunk, correlation=correlation, sent=body)
        except DECODE_ERRORS:
            pass  # most bodies are valid; for these, `contextlib.suppress` would take longer
        if len(body) > self._max_bytes:
            raise SlowBodyError
        if body_format is JSON and (b"NaN" in body or b"Infinity" in body):
            plain = _without_literals(body)
            with contextlib.suppress(*DECODE_ERRORS):
                return self._read(plain, JSON, kinds, chunk=chunk, correlation=correlation, sent=body)
        if correlation is None:
            return self._faults.of_body(body, body_format, kinds[0], chunk=chunk)
        return self._faults.of_message(body, body_format, correlation, many=len(kinds) > 1)

    def _read(
        self,
        body: bytes,
        body_format: Format,
        kinds: Sequence[type[StepOptions | RunBody]],
        *,
        chunk: bool,
        correlation: dict[str, Any] | None,
        sent: bytes,
    ) -> DecodedStep | DecodedBulk | DecodedRun:
        """Decode a body as `_decode` does; `sent` has the words of the errors of its rows.

        Raises:
            ValueError: It is not valid; likewise the others of `DECODE_ERRORS`.
            ServiceError: A fault that needs no other words.
        """
        envelope = _envelope(body, body_format, kinds)
        if sent is not body:  # a literal that JSON does not have; only a row of columns fails without the others
            if _NOT_FINITE in bytes(getattr(envelope, "id", UNSET) or b""):
                if correlation is not None:
                    correlation |= {key: of for key, of in correlation_of(envelope).items() if key != "id"}
                raise ServiceError(
                    "bad_json",
                    "`id` has a number that is not finite, which JSON does not have.",
                    fix="Send another `id`, or none.",
                )
            if envelope.n_rows is None:
                raise NotTypedError
        if isinstance(envelope, PeekBody | BulkMessage):
            chunk = envelope.chunk is True
            if envelope.keep is not UNSET and not chunk:
                raise NotTypedError
        rows, faults = envelope.n_rows, dict[int, ServiceError]()
        inputs = self._inputs.read(envelope.inputs, body_format, chunk + (rows is not None), rows)
        arrays = inputs.arrays
        if rows is not None and not chunk:
            arrays = {name: column[:, None] for name, column in arrays.items()}
        if any(inputs.wrong.values()):
            if len(sent) > self._max_bytes:
                raise SlowBodyError
            length = next(iter(arrays.values())).shape[1]
            faults = self._faults.of_rows(sent, body_format, inputs.wrong, length, chunk=chunk)
        elif body_format is JSON:
            reject_duplicate_keys(body, envelope, inputs.names, max_bytes=self._max_bytes)
        else:
            reject_duplicate_entries(body, envelope)
        if correlation is not None:
            correlation |= correlation_of(envelope)
        if isinstance(envelope, StepBody):
            step = DecodedStep(envelope, arrays, chunk)
            check_source(envelope.source, step.length)
            return step
        if len(faults) == rows and all(fault.code == "bad_input" for fault in faults.values()):
            raise faults[0]
        if isinstance(envelope, RunBody):
            if rows is None:
                arrays = {name: array[None] for name, array in arrays.items()}
            return DecodedRun(envelope, arrays, faults)
        return DecodedBulk(envelope, arrays, chunk, faults)

    def _checked(self, step: DecodedStep) -> DecodedStep:
        """Check the number of timesteps, and return the body."""
        if step.chunk:
            self._check_length(step.inputs, axis=0)
        return step

    def _checked_bulk(self, bulk: DecodedBulk, body_format: Format) -> DecodedBulk:
        """Check the columns as a whole, and return the body; an invalid stream id becomes a fault of its row."""
        self._check_length(bulk.inputs, axis=1)
        body = bulk.body
        streams = body.streams
        count = len(streams)
        self._check_rows(count, "streams")
        for name, column in (("seq", body.seq), ("after", body.after)):
            if column is not UNSET and len(column) != count:
                _reject_columns(
                    f"`{name}` has {counted(len(column), 'entry', 'entries')} for {counted(count, 'stream')}; "
                    "expected one for each."
                )
        bulk.sources = sources_of(body.source, count, body_format, bulk.length, chunk=bulk.chunk)
        unchecked = self.checked_ids.unchecked(streams)
        if not unchecked:
            return bulk
        if len(set(streams)) != count:
            stream, occurrences = Counter(streams).most_common(1)[0]
            _reject_columns(f"Stream {preview(stream)} occurs {occurrences} times; expected each stream once.")
        invalid = [i for i in unchecked if not is_stream_id(streams[i])]
        for i in invalid:
            bulk.faults.setdefault(i, bad_stream_id(streams[i]))
        if not invalid:
            self.checked_ids.add(streams)
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


_MODULES: dict[Format, Any] = {JSON: msgspec.json, MSGPACK: msgspec.msgpack}
_QUOTE = ord('"')
_NOT_FINITE = b"1e999"
_LITERALS = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|$)|NaN|-?Infinity', re.DOTALL)


def _envelope(body: bytes, body_format: Format, kinds: Sequence[Any]) -> Any:
    """Decode a body, but not its inputs, as the first of some kinds that it fits."""
    for kind in kinds[:-1]:
        with contextlib.suppress(*DECODE_ERRORS):
            return _decoder(body_format, kind)(body)
    return _decoder(body_format, kinds[-1])(body)


@cache
def _decoder(body_format: Format, kind: Any) -> Callable[[bytes], Any]:
    decode: Callable[[bytes], Any] = _MODULES[body_format].Decoder(kind).decode
    return decode


def _without_literals(body: bytes) -> bytes:
    """Return a body with a number that is not finite for each literal that JSON does not have, outside of texts.

    In columns, such a literal is the error of its row alone.
    """
    return _LITERALS.sub(lambda found: found[0] if found[0][0] == _QUOTE else _NOT_FINITE, body)


def _reject_columns(problem: str) -> NoReturn:
    raise ServiceError("bad_input", problem, fix="Send one entry per stream in every column.")
