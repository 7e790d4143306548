"""`StepHandler`, `BulkHandler`: requests that move streams, from a head that is understood to the bytes of the answer.

The declared routes and the fast lane differ in how they read a head and write an answer; what lies between is here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from service.codec import BulkBody, Format, RequestDecoder
from service.codec.formats import encode
from service.codec.responses import encode_json_step, encode_step
from service.codec.typed_decoder import DECODE_ERRORS, StepParts
from service.engine.stepping.columnar_batch import BulkOutcomes, StepOutcome
from service.errors import ServiceError
from service.requests.bulk import StreamKeyCache, bulk_document, submit_columns, to_timestep
from service.store.keys import record_key
from service.types import BulkPrediction, ReturnMode, StreamHandle, StreamKey, Timestep

if TYPE_CHECKING:
    from service.engine.engine import Engine
    from service.models.registry import ServedModel
    from service.requests.context import AppContext


class RequestHandler(Protocol):
    """A request whose head is understood and allowed; its body is still to be read."""

    def submit(self, body: bytes, done: Callable[[Any], None]) -> None:
        """Read the body and hand the work over; `done` gets the result, exactly once, maybe before this returns.

        Raises:
            ServiceError: The body was refused; `done` is not called then.
        """
        ...

    def encode_response(self, result: Any) -> bytes:
        """Return the body of the answer to a result that is no `ServiceError`."""
        ...

    @property
    def is_reusable(self) -> bool:
        """Whether it serves every request with the same head, several at a time too."""
        ...

    # What follows is asked for after `encode_response`.

    @property
    def response_format(self) -> Format:
        """The format of the answer."""
        ...

    @property
    def extra_headers(self) -> Mapping[str, str] | None:
        """What the answer says besides; names in lower case."""
        ...


@dataclass(slots=True)
class StepHandler:
    """Moves one stream, by one timestep or a chunk of them.

    Attributes:
        context: What every route needs.
        served: The model.
        key: The stream; its id is checked.
        chunk: The body has a time axis.
        version: The version that was asked for, or None.
        idempotency_key: The client's, checked, or None.
        form: The format of the body.
        answer_form: The format of the answer.
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
    _read: Callable[[bytes], StepParts] | None = field(init=False)
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
        """A chunk's answer depends on what its body asks for."""
        return not self.chunk

    def submit(self, body: bytes, done: Callable[[StepOutcome], None]) -> None:
        """Submit the timestep, or raise what is wrong with the body."""
        if self._read is not None:  # what nearly all are
            try:
                inputs, seq, after, create = self._read(body)
            except DECODE_ERRORS:
                pass
            else:
                if create == "auto" and self.idempotency_key is None:
                    self._engine.submit_single(self._stream, inputs, seq, after, done, served=self.served)
                    return
                timestep = Timestep(
                    self.key,
                    inputs,
                    seq=seq,
                    after=after,
                    create=create,
                    idempotency_key=self.idempotency_key,
                    version=self.version,
                    name=self._stream.name,
                )
                self._engine.submit(timestep, done, self.served)
                return
        if self.chunk:
            step = self._decoder.steps(body, self.request_format)
            self._keep = step.keep
        else:
            step = self._decoder.step(body, self.request_format)
        timestep = to_timestep(step, self.key, self.version, transport="http", idempotency_key=self.idempotency_key)
        self._engine.submit(timestep, done, self.served)

    def encode_response(self, result: Any) -> bytes:
        """Return the answer to a prediction."""
        if self._sequenced_only:
            return encode_json_step(result)
        return encode_step(result, self.response_format, chunk=self.chunk, keep=self._keep)


@dataclass(slots=True)
class BulkHandler:
    """Moves many streams of one model.

    Attributes:
        context: What every route needs.
        served: The model.
        tenant: Whose streams they are.
        chunk: The rows have a time axis.
        version: The version that was asked for, or None.
        idempotency_key: The client's, checked, or None.
        form: The format of the body.
        answer_form: The format of the answer.
    """

    context: AppContext
    served: ServedModel
    tenant: str
    chunk: bool
    version: int | None
    idempotency_key: str | None
    request_format: Format
    response_format: Format
    _bulk: BulkBody = field(init=False)
    extra_headers: ClassVar[None] = None
    is_reusable: ClassVar[bool] = False

    def submit(self, body: bytes, done: Callable[[BulkOutcomes], None]) -> None:
        """Submit every timestep, or raise what is wrong with the body."""
        self._bulk = self.context.decoder(self.served).bulk(body, self.request_format, chunk=self.chunk)
        submit_columns(
            self.context.engine,
            self._bulk,
            StreamKeyCache(self.tenant, self.served.name),
            self.version,
            done,
            served=self.served,
            transport="http",
            idempotency_key=self.idempotency_key,
        )

    def encode_response(self, result: Any) -> bytes:
        """Return the answer in columns, and count the rows that were refused."""
        document = bulk_document(self._bulk, result, self.served, self.response_format)
        for row in () if isinstance(result, BulkPrediction) else result:
            if isinstance(row, ServiceError):
                self.context.metrics.refusal(row.code)
        return encode(document, self.response_format)


async def run(call: RequestHandler, body: bytes) -> bytes:
    """Do what a call asks and return the body of the answer; the work goes on when the caller is cancelled.

    Raises:
        ServiceError: It was refused, or its outcome is not known; see `applied`.
    """
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    call.submit(body, lambda result: None if future.done() else future.set_result(result))
    result = await future
    if isinstance(result, ServiceError):
        raise result
    return call.encode_response(result)
