"""`RequestDecoder`: decodes request bodies for one model, fast if they are valid, with exact errors if not.

The fast path is typed decoders and NumPy. A body that it rejects, for whatever reason, is decoded again by the strict
path, which either accepts it or gives the exact error: the strict path alone defines what is a valid body. A property
test checks that both paths agree.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NoReturn

import msgspec
from msgspec import UNSET, Raw

from model_export.manifest import Array, Manifest
from service.codec import envelopes
from service.codec.envelopes import BulkBody, Envelope, FeedMessage, StepBody, bad_request, check_envelope
from service.codec.formats import JSON, MSGPACK, Format, encode
from service.codec.strict_parse import parse, preview
from service.codec.strict_tensors import read_column, read_tensor
from service.codec.typed_decoder import (
    DECODE_ERRORS,
    NotTypedError,
    StepParts,
    TypedInputsDecoder,
    TypedStepDecoder,
    read_state_id,
    reject_duplicate_keys,
)
from service.errors import ServiceError
from service.ids import bad_stream_id, decode_state_id, is_stream_id

_STEP_KEYS = ("seq", "after", "create")
_STEPS_KEYS = (*_STEP_KEYS, "return")
_MAX_STREAM_LISTS = 64  # cached lists of stream ids: clients send the same streams in each message
_MAX_CACHED_STREAMS = 4096  # in one list


class RequestDecoder:
    """Decodes request bodies for one model.

    Attributes:
        manifest: The model's manifest.
    """

    def __init__(self, manifest: Manifest, *, max_chunk_steps: int = 4096, max_streams: int = 10_000) -> None:
        """Create the decoder of a model.

        Args:
            manifest: The model's manifest.
            max_chunk_steps: Most timesteps of one stream in a body.
            max_streams: Most streams in a body.
        """
        self.manifest = manifest
        self._max_steps = max_chunk_steps
        self._max_streams = max_streams
        self._specs = {spec.name: spec for spec in manifest.inputs}
        self._typed_inputs = TypedInputsDecoder(manifest.inputs)
        # Lists of stream ids that passed all checks, by their first stream.
        self._checked_stream_lists: dict[str, list[str]] = {}
        self._typed_step: TypedStepDecoder | None = None
        with contextlib.suppress(ValueError):  # an input's name cannot be the name of a decoder's field
            self._typed_step = TypedStepDecoder(manifest.inputs)

    @property
    def read_step(self) -> Callable[[bytes], StepParts] | None:
        """Decoder of valid JSON bodies of a step to packed bytes, without arrays; None if the model has none.

        It raises one of `DECODE_ERRORS` for all others; `step` then decodes them, or gives the exact error.
        """
        return None if self._typed_step is None else self._typed_step.read

    @property
    def read_feed_message(self) -> Callable[[bytes], tuple[str | None, Raw | None, StepParts]] | None:
        """Decoder of a feed's message in JSON: its stream, its id, and its timestep; `feed` decodes all others."""
        return None if self._typed_step is None else self._typed_step.read_feed_message

    def step(self, body: bytes, body_format: Format) -> StepBody:
        """Decode the body of a step: one timestep of one stream.

        Raises:
            ServiceError: `bad_json`, `bad_request`, `bad_input` or `non_finite`.
        """
        try:
            if body_format is JSON and self._typed_step is not None:
                return self._typed_step.body(self._typed_step.read(body))
            return self._step(_decode(body, body_format, envelopes.StepEnvelope), body, body_format, chunk=False)
        except DECODE_ERRORS:
            document = check_envelope(parse(body, body_format), _STEP_KEYS, required=("inputs",))
            return self._strict_step(document, chunk=False)

    def steps(self, body: bytes, body_format: Format) -> StepBody:
        """Decode the body of a chunk: T timesteps of one stream.

        Raises:
            ServiceError: As for `step`, and `too_large`.
        """
        try:
            return self._step(_decode(body, body_format, envelopes.StepsEnvelope), body, body_format, chunk=True)
        except DECODE_ERRORS:
            document = check_envelope(parse(body, body_format), _STEPS_KEYS, required=("inputs",))
            return self._strict_step(document, chunk=True)

    def peek(self, body: bytes, body_format: Format) -> StepBody:
        """Decode the body of a peek: that of a step or, with `chunk`, of a chunk.

        Raises:
            ServiceError: As for `steps`.
        """
        try:
            envelope = _decode(body, body_format, envelopes.PeekEnvelope)
            chunk = envelope.chunk is True
            if envelope.keep is not UNSET and not chunk:
                raise NotTypedError
            return self._step(envelope, body, body_format, chunk=chunk)
        except DECODE_ERRORS:
            document = check_envelope(parse(body, body_format), (*_STEPS_KEYS, "chunk"), required=("inputs",))
            chunk = document.get("chunk", False)
            _check_chunk(document, chunk=chunk)
            return self._strict_step(document, chunk=chunk)

    def bulk(self, body: bytes, body_format: Format, *, chunk: bool) -> BulkBody:
        """Decode columns: one timestep or, with `chunk`, T timesteps, of many streams.

        An error of a single row is not raised; it is in `faults` of the result.

        Raises:
            ServiceError: As for `steps`.
        """
        try:
            envelope_type = envelopes.BulkStepsEnvelope if chunk else envelopes.BulkEnvelope
            return self._bulk(_decode(body, body_format, envelope_type), body, body_format, chunk=chunk)
        except DECODE_ERRORS:
            keys = _STEPS_KEYS if chunk else _STEP_KEYS
            return self._strict_bulk(
                check_envelope(parse(body, body_format), keys, required=("streams", "inputs")), chunk=chunk
            )

    def feed(self, body: bytes, body_format: Format, *, many: bool) -> FeedMessage:
        """Decode a message of a feed.

        Args:
            body: The message.
            body_format: Its format.
            many: The feed is for many streams, so each message contains its stream or streams.

        Raises:
            ServiceError: As for `steps`.
        """
        columns = many and b"streams" in body  # a guess: if it is wrong, the strict path decodes the message
        envelope_type = envelopes.FeedColumnsEnvelope if columns else envelopes.FeedEnvelope
        try:
            envelope = _decode(body, body_format, envelope_type)
            chunk = envelope.chunk is True
            message_id = None if envelope.id is UNSET else envelope.id
            if envelope.keep is not UNSET and not chunk:
                raise NotTypedError
            if columns:
                return FeedMessage(self._bulk(envelope, body, body_format, chunk=chunk), None, message_id)
            if many is (envelope.stream is UNSET):
                raise NotTypedError
            stream = envelope.stream if many else None
            return FeedMessage(self._step(envelope, body, body_format, chunk=chunk), stream, message_id)
        except DECODE_ERRORS:
            return self._strict_message(parse(body, body_format), body_format, many=many)

    # ---------------------------------------------------------------- the fast path

    def _step(self, envelope: Any, body: bytes, body_format: Format, *, chunk: bool) -> StepBody:
        inputs, colons = self._typed_inputs.read(envelope.inputs, body_format, 1 if chunk else 0)
        if body_format is JSON:
            _reject_duplicate_keys(body, envelope, colons)
        step = _step_body(inputs, envelope)
        if chunk:
            step.length, step.chunk = self._length(inputs), True
            if envelope.keep is not UNSET:
                step.keep = envelope.keep
        return step

    def _bulk(self, envelope: Any, body: bytes, body_format: Format, *, chunk: bool) -> BulkBody:
        inputs, colons = self._typed_inputs.read(envelope.inputs, body_format, 2 if chunk else 1)
        if body_format is JSON:
            _reject_duplicate_keys(body, envelope, colons + sum(stream.count(":") for stream in envelope.streams))
        if any(len(column) != len(envelope.streams) for column in inputs.values()):
            raise NotTypedError
        if not chunk:
            inputs = {name: column[:, None] for name, column in inputs.items()}
        not_given: list[Any] = [None] * len(envelope.streams)
        return self._columns(
            BulkBody(
                envelope.streams,
                inputs,
                self._length(inputs, axis=1),
                chunk,
                not_given if envelope.seq is UNSET else envelope.seq,
                not_given if envelope.after is UNSET else [after and read_state_id(after) for after in envelope.after],
                "auto" if envelope.create is UNSET else envelope.create,
                envelope.keep if chunk and envelope.keep is not UNSET else "all",
            )
        )

    # ---------------------------------------------------------------- the strict path

    def _strict_step(self, document: dict[str, Any], *, chunk: bool) -> StepBody:
        lead = (None,) if chunk else ()
        inputs = {
            name: read_tensor(value, self._specs[name], lead, f"Input {name!r}")
            for name, value in self._by_name(document["inputs"]).items()
        }
        if not chunk:
            inputs = {name: array[None] for name, array in inputs.items()}
        return StepBody(
            inputs,
            self._length(inputs),
            chunk,
            document.get("seq"),
            decode_state_id(document["after"]) if "after" in document else None,
            document.get("create", "auto"),
            document.get("return", "all"),
        )

    def _strict_bulk(self, document: dict[str, Any], *, chunk: bool) -> BulkBody:
        inputs: dict[str, Array] = {}
        faults: dict[int, ServiceError] = {}
        rows = len(document["streams"])
        for name, value in self._by_name(document["inputs"]).items():
            column, column_faults = read_column(value, self._specs[name], rows, chunk=chunk, what=f"Input {name!r}")
            inputs[name] = column if chunk else column[:, None]
            faults = column_faults | faults
        if rows and len(faults) == rows and all(fault.code == "bad_input" for fault in faults.values()):
            raise faults[0]
        not_given: list[Any] = [None] * rows
        afters = [after and decode_state_id(after) for after in document.get("after", not_given)]
        return self._columns(
            BulkBody(
                document["streams"],
                inputs,
                self._length(inputs, axis=1),
                chunk,
                document.get("seq", not_given),
                afters,
                document.get("create", "auto"),
                document.get("return", "all"),
                faults,
            )
        )

    def _strict_message(self, document: Any, body_format: Format, *, many: bool) -> FeedMessage:
        columns = many and isinstance(document, dict) and "streams" in document
        required = ("streams" if columns else "stream", "inputs") if many else ("inputs",)
        document = check_envelope(document, (*_STEPS_KEYS, "chunk", "id"), required=required)
        chunk = document.get("chunk", False)
        _check_chunk(document, chunk=chunk)
        message_id = Raw(encode(document["id"], body_format)) if "id" in document else None
        if columns:
            return FeedMessage(self._strict_bulk(document, chunk=chunk), None, message_id)
        return FeedMessage(self._strict_step(document, chunk=chunk), document.get("stream"), message_id)

    def _by_name(self, inputs: Any) -> dict[str, Any]:
        """Return the value of each declared input by name; for a model with one input, its value alone is valid too."""
        only = next(iter(self._specs)) if len(self._specs) == 1 else None
        packed = isinstance(inputs, dict) and isinstance(inputs.get("b"), bytes) and only not in inputs
        if only is not None and (packed or not isinstance(inputs, dict)):
            return {only: inputs}
        if isinstance(inputs, dict) and inputs.keys() == self._specs.keys():
            return {name: inputs[name] for name in self._specs}
        found = f"has {_listed(inputs)}" if isinstance(inputs, dict) else f"is {preview(inputs)}"
        raise ServiceError(
            "bad_input",
            f"`inputs` {found}; expected an object with {_listed(self._specs)}.",
            fix="Send each declared input once, and no other.",
        )

    # ---------------------------------------------------------------- both paths

    def _length(self, inputs: dict[str, Array], *, axis: int = 0) -> int:
        """Return T, which must be equal for all inputs."""
        lengths = {name: array.shape[axis] for name, array in inputs.items()}
        length: int = next(iter(lengths.values()))
        if any(other != length for other in lengths.values()):
            raise ServiceError(
                "bad_input",
                f"Inputs have different numbers of timesteps: {lengths}; expected the same for each.",
                fix="Send one row per timestep in every input.",
            )
        if length == 0:
            raise NotTypedError
        if length > self._max_steps:
            raise ServiceError(
                "too_large",
                f"The chunk has {length} timesteps; at most {self._max_steps} are allowed.",
                fix="Send it in parts, or raise `max_chunk_steps`.",
            )
        return length

    def _columns(self, bulk: BulkBody) -> BulkBody:
        """Check the columns as a whole; an invalid stream id becomes a fault of its row."""
        count = len(bulk.streams)
        if count == 0:
            _reject_columns("`streams` is empty; expected at least one stream id.")
        if count > self._max_streams:
            raise ServiceError(
                "too_large",
                f"The body has {count} streams; at most {self._max_streams} are allowed.",
                fix="Send them in parts, or raise `queue_limit`.",
            )
        for name, column in (("seq", bulk.seqs), ("after", bulk.afters)):
            if len(column) != count:
                _reject_columns(f"`{name}` has {len(column)} entries for {count} streams; expected one for each.")
        streams = bulk.streams
        if self._checked_stream_lists.get(streams[0]) == streams:
            return bulk
        if len(set(streams)) != count:
            stream, occurrences = Counter(streams).most_common(1)[0]
            _reject_columns(f"Stream {preview(stream)} occurs {occurrences} times; expected each stream once.")
        invalid = [i for i, stream in enumerate(streams) if not is_stream_id(stream)]
        for i in invalid:
            bulk.faults.setdefault(i, bad_stream_id(streams[i]))
        if not invalid and count <= _MAX_CACHED_STREAMS:
            if len(self._checked_stream_lists) >= _MAX_STREAM_LISTS:
                self._checked_stream_lists.clear()
            self._checked_stream_lists[streams[0]] = streams
        return bulk


_DECODERS = {
    (body_format, envelope_type): module.Decoder(envelope_type)
    for body_format, module in ((JSON, msgspec.json), (MSGPACK, msgspec.msgpack))
    for envelope_type in (
        envelopes.StepEnvelope,
        envelopes.StepsEnvelope,
        envelopes.PeekEnvelope,
        envelopes.BulkEnvelope,
        envelopes.BulkStepsEnvelope,
        envelopes.FeedEnvelope,
        envelopes.FeedColumnsEnvelope,
    )
}


def _decode(body: bytes, body_format: Format, envelope_type: type[Envelope]) -> Any:
    return _DECODERS[body_format, envelope_type].decode(body)


def _reject_duplicate_keys(body: bytes, envelope: Any, colons: int) -> None:
    for name in envelope.__struct_fields__:
        value = getattr(envelope, name)
        if value is not UNSET:
            colons += 1
            if name == "stream":
                colons += value.count(":")
            elif name == "id":
                colons += bytes(value).count(b":")
    reject_duplicate_keys(body, colons)


def _step_body(inputs: dict[str, Array], envelope: Any) -> StepBody:
    """Return the decoded body of one timestep."""
    seq, after, create = envelope.seq, envelope.after, envelope.create
    return StepBody(
        inputs,
        1,
        False,
        None if seq is UNSET else seq,
        None if after is UNSET else read_state_id(after),
        "auto" if create is UNSET else create,
        "all",
    )


def _check_chunk(document: dict[str, Any], *, chunk: bool) -> None:
    if "return" in document and not chunk:
        bad_request(f"`return` is {preview(document['return'])} without `chunk`; expected it with `chunk: true` only.")


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(preview(name) for name in islice(names, 20)) or "no names"


def _reject_columns(problem: str) -> NoReturn:
    raise ServiceError("bad_input", problem, fix="Send one entry per stream in every column.")
