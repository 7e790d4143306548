"""`StepHandler`, `BulkHandler`: handle a step or bulk request, from its parsed head to the body of its response.

The declared routes and the fast path parse heads and write responses in their own code; they share these handlers.
The functions below, from decoded bodies to timesteps and from predictions to responses, are for every transport.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from msgspec import UNSET

from stepwell.codec.checked_stream_ids import CheckedStreamIds, StreamNames
from stepwell.codec.request_decoder import ReadStep, RequestDecoder
from stepwell.codec.responses import (
    bulk_response,
    bulk_response_of_parts,
    encode_json_step,
    encode_step,
    has_outputs,
)
from stepwell.codec.sources import source_of
from stepwell.codec.step_bodies import DecodedBulk, DecodedStep
from stepwell.codec.strict.tensors import pack_inputs, pack_rows
from stepwell.codec.typed_decoder import DECODE_ERRORS, LARGE_BYTES, TypedStep
from stepwell.engine.stepping.outcomes import BulkOutcomes, StepOutcome
from stepwell.errors import ServiceError
from stepwell.requests.problems import problem_document
from stepwell.store.keys import record_key
from stepwell.types import (
    BulkPrediction,
    BulkTimesteps,
    ReplyCallback,
    StreamHandle,
    StreamKey,
    Timestep,
    Transport,
)
from stepwell_client.wire.formats import Format, encode
from stepwell_client.wire.ids import decode_state_id
from stepwell_client.wire.outcomes import ReturnMode

if TYPE_CHECKING:
    from stepwell.engine.engine import Engine
    from stepwell.models.served import ServedModel
    from stepwell.requests.context import AppContext


class RequestHandler(Protocol):
    """A request whose head is parsed and authorized, and whose body is not decoded yet."""

    def submit(self, body: bytes, done: Callable[[Any], None]) -> None:
        """Decode the body and submit it; `done` gets the result, exactly once, possibly before this returns.

        Raises:
            ServiceError: The body was rejected; `done` is not called. What is wrong with a large body is its result.
        """
        ...

    def encode_response(self, result: Any) -> bytes:
        """Return the response body of a result that is not a `ServiceError`."""
        ...

    @property
    def served(self) -> ServedModel:
        """The model."""
        ...

    @property
    def is_reusable(self) -> bool:
        """Whether it can handle every request with the same head, also several at a time."""
        ...

    # The following are valid after `encode_response`.

    @property
    def response_format(self) -> Format:
        """The format of the response."""
        ...

    @property
    def extra_headers(self) -> Mapping[str, str] | None:
        """Further response headers, or None; names in lower case."""
        ...


@dataclass(slots=True)
class StepHandler:
    """Handles a request with one timestep or chunk of one stream.

    Attributes:
        context: The dependencies of every route.
        served: The model.
        key: The stream, with a valid id.
        chunk: Whether the body has a time axis.
        version: The requested version, or None: the default.
        idempotency_key: The client's key, of valid length, or None.
        request_format: The format of the body.
        response_format: The format of the response.
    """

    context: AppContext
    served: ServedModel
    key: StreamKey
    chunk: bool
    version: int | None
    idempotency_key: str | None
    request_format: Format
    response_format: Format
    _keep: ReturnMode = "all"
    _decoder: RequestDecoder = field(init=False)
    _read: ReadStep | None = field(init=False)
    _sequenced_only: bool = field(init=False)
    _stream: StreamHandle = field(init=False)
    _engine: Engine = field(init=False)
    extra_headers: ClassVar[None] = None

    def __post_init__(self) -> None:
        self._engine = self.context.engine
        self._decoder = self.context.decoder(self.served)
        self._read = self._decoder.read_step if self.request_format is Format.JSON and not self.chunk else None
        self._sequenced_only = self.response_format is Format.JSON and not self.chunk
        self._stream = StreamHandle(self.key, record_key(*self.key), self.version, "http")

    @property
    def is_reusable(self) -> bool:
        """Whether it handles single steps: the response to a chunk depends on `return` in its body."""
        return not self.chunk

    def submit(self, body: bytes, done: Callable[[StepOutcome], None]) -> None:
        """Submit the timestep or chunk, or raise what is wrong with the body."""
        try:
            if self._read is not None and len(body) <= LARGE_BYTES:  # the most frequent kind
                try:
                    typed = self._read(body)
                except DECODE_ERRORS:
                    pass
                else:
                    submit_typed(
                        self._engine,
                        typed,
                        self._stream,
                        done,
                        served=self.served,
                        idempotency_key=self.idempotency_key,
                    )
                    return
            self.context.large_bodies.run(
                body,
                self._decoder,
                partial(self._decode, body),
                partial(self._submit_decoded, done),  # no closure: it would slow down the most frequent kind
                partial(self._fail, done),
            )
        except ServiceError as exc:
            self._engine.observer.refused(*self.key, exc)
            raise

    def _fail(self, done: Callable[[StepOutcome], None], error: ServiceError) -> None:
        self._engine.observer.refused(*self.key, error)
        done(error)

    def _decode(self, body: bytes, decoder: RequestDecoder) -> DecodedStep:
        return (decoder.steps if self.chunk else decoder.step)(body, self.request_format)

    def _submit_decoded(self, done: Callable[[StepOutcome], None], step: DecodedStep) -> None:
        if self.chunk:
            self._keep = step.keep
        timestep = to_timestep(step, self.key, self.version, transport="http", idempotency_key=self.idempotency_key)
        self._engine.steps.submit(timestep, done, self.served)

    def encode_response(self, result: Any) -> bytes:
        """Return the response body of a prediction."""
        if self._sequenced_only:
            return encode_json_step(result)
        return encode_step(result, self.response_format, chunk=self.chunk, keep=self._keep)


@dataclass(slots=True)
class BulkHandler:
    """Handles a bulk request: many streams of one model.

    Attributes:
        context: The dependencies of every route.
        served: The model.
        tenant: The owner of the streams.
        chunk: Whether the rows have a time axis.
        version: The requested version, or None: the default.
        idempotency_key: The client's key, of valid length, or None.
        request_format: The format of the body.
        response_format: The format of the response.
    """

    context: AppContext
    served: ServedModel
    tenant: str
    chunk: bool
    version: int | None
    idempotency_key: str | None
    request_format: Format
    response_format: Format
    _bulk: DecodedBulk = field(init=False)
    extra_headers: ClassVar[None] = None
    is_reusable: ClassVar[bool] = False

    def submit(self, body: bytes, done: Callable[[BulkOutcomes | ServiceError], None]) -> None:
        """Submit all timesteps, or raise what is wrong with the body."""
        decoder = self.context.decoder(self.served)
        self.context.large_bodies.run(
            body,
            decoder,
            lambda decoder: decoder.bulk(body, self.request_format, chunk=self.chunk),
            lambda bulk: self._submit_decoded(bulk, decoder, done),
            done,
        )

    def _submit_decoded(
        self, bulk: DecodedBulk, decoder: RequestDecoder, done: Callable[[BulkOutcomes | ServiceError], None]
    ) -> None:
        self._bulk = bulk
        submit_columns(
            self.context.engine,
            bulk,
            self.version,
            done,
            checked_ids=decoder.checked_ids,
            tenant=self.tenant,
            served=self.served,
            transport="http",
            idempotency_key=self.idempotency_key,
        )

    def encode_response(self, result: Any) -> bytes:
        """Return the response body, and count the errors of its rows."""
        document = bulk_document(self._bulk, result, self.served, self.response_format)
        for error in () if isinstance(result, BulkPrediction) else result.errors.values():
            self.context.metrics.refusal(error.code)
        return encode(document, self.response_format)


async def run(submit: Callable[[Callable[[Any], None]], None], handler: RequestHandler) -> bytes:
    """Submit a request and return its response body; the engine completes it even if the caller is cancelled.

    Args:
        submit: Submits it, as `RequestHandler.submit` does; it is called with `done`.
        handler: Encodes the response.

    Raises:
        ServiceError: The request was rejected, or its outcome is unknown; see `applied`.
    """
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    submit(lambda result: None if future.done() else future.set_result(result))
    result = await future
    if isinstance(result, ServiceError):
        raise result
    return handler.encode_response(result)


# ---------------------------------------------------------------- for every transport


def to_timestep(
    step: DecodedStep, key: StreamKey, version: int | None, *, transport: Transport, idempotency_key: str | None = None
) -> Timestep:
    """Return the engine's timestep (or chunk) of a decoded body."""
    return Timestep(
        key,
        pack_inputs(step.inputs),
        step.length,
        idempotency_key=idempotency_key,
        version=version,
        transport=transport,
        **step.body.options(),
    )


def submit_typed(
    engine: Engine,
    step: TypedStep,
    handle: StreamHandle,
    done: ReplyCallback,
    *,
    served: ServedModel,
    idempotency_key: str | None = None,
) -> None:
    """Submit a single timestep that was decoded in one pass."""
    body, inputs, is_plain = step
    if is_plain and idempotency_key is None:
        seq = None if body.seq is UNSET else body.seq
        after = None if body.after is UNSET else decode_state_id(body.after)
        source = None if body.source is UNSET else source_of(body.source)
        engine.steps.versions[served].submit_single(handle, inputs, seq, after, source, done)
        return
    timestep = Timestep(
        handle.key,
        inputs,
        idempotency_key=idempotency_key,
        version=handle.version,
        transport=handle.transport,
        name=handle.name,
        **body.options(),
    )
    engine.steps.submit(timestep, done, served)


def submit_columns(
    engine: Engine,
    bulk: DecodedBulk,
    version: int | None,
    done: Callable[[BulkOutcomes], None],
    *,
    checked_ids: CheckedStreamIds,
    tenant: str,
    served: ServedModel,
    transport: Transport,
    idempotency_key: str | None = None,
) -> None:
    """Submit a bulk request, one timestep or chunk per stream; `done` gets the results once all streams have one."""
    body = bulk.body

    def make_names(streams: Sequence[str]) -> StreamNames:
        keys = [StreamKey(tenant, served.name, stream) for stream in streams]
        return keys, [record_key(*key) for key in keys]

    keys, names = checked_ids.names(body.streams, tenant, make_names)
    afters = bulk.column(body.after)
    if afters.count(None) < len(afters):
        afters = [after and decode_state_id(after) for after in afters]
    rows = BulkTimesteps(
        keys,
        names,
        bulk.inputs,
        list(pack_rows(bulk.inputs)),
        bulk.length,
        bulk.column(body.seq),
        afters,
        bulk.sources,
        idempotency_key=idempotency_key,
        version=version,
        transport=transport,
        **body.options(),
    )
    for i, fault in bulk.faults.items():
        engine.observer.refused(*keys[i], fault)
    engine.steps.submit_bulk(rows, done, served, bulk.faults)


def bulk_document(
    bulk: DecodedBulk, results: BulkOutcomes, served: ServedModel, response_format: Format
) -> dict[str, Any]:
    """Return the response to a bulk request."""
    specs = served.manifest.answered
    if isinstance(results, BulkPrediction):
        if has_outputs(results.batch, specs, bulk.keep):
            return bulk_response(results, specs, response_format, chunk=bulk.chunk, keep=bulk.keep)
        results = results.as_parts()
    return bulk_response_of_parts(
        results,
        {i: problem_document(error) for i, error in results.errors.items()},
        specs,
        response_format,
        length=bulk.length,
        chunk=bulk.chunk,
        keep=bulk.keep,
    )
