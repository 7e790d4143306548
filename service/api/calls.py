"""`StepCall`, `ColumnsCall`: requests that move streams, from a head that is understood to the bytes of the answer.

The declared routes and the fast lane differ in how they read a head and write an answer; what lies between is here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from service.api.moves import Roster, columns_answer, submit_columns, timestep_of
from service.engine.block import Result, Results
from service.engine.types import Predictions, StreamDoor, StreamKey, Timestep
from service.errors import ServiceError
from service.wire import BulkBody, Format, ModelWire
from service.wire.answers import write_json_step, write_step
from service.wire.bodies import Keep
from service.wire.fast import NOT_SOUND, StepParts
from service.wire.formats import encode

if TYPE_CHECKING:
    from service.api.context import Context
    from service.engine.engine import Engine
    from service.engine.models import ServedModel


class Call(Protocol):
    """A request whose head is understood and allowed; its body is still to be read."""

    def begin(self, body: bytes, done: Callable[[Any], None]) -> None:
        """Read the body and hand the work over; `done` gets the result, exactly once, maybe before this returns.

        Raises:
            ServiceError: The body was refused; `done` is not called then.
        """
        ...

    def encode(self, result: Any) -> bytes:
        """Return the body of the answer to a result that is no `ServiceError`."""
        ...

    @property
    def serves_many(self) -> bool:
        """Whether it serves every request with the same head, several at a time too."""
        ...

    # What follows is asked for after `encode`.

    @property
    def answer_form(self) -> Format:
        """The format of the answer."""
        ...

    @property
    def more_headers(self) -> Mapping[str, str] | None:
        """What the answer says besides; names in lower case."""
        ...


@dataclass(slots=True)
class StepCall:
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

    context: Context
    served: ServedModel
    key: StreamKey
    chunk: bool
    version: int | None
    idempotency_key: str | None
    form: Format
    answer_form: Format
    _keep: Keep = "all"
    _wire: ModelWire = field(init=False)
    _read: Callable[[bytes], StepParts] | None = field(init=False)
    _is_plain: bool = field(init=False)
    _stream: StreamDoor = field(init=False)
    _engine: Engine = field(init=False)
    more_headers: ClassVar[None] = None

    def __post_init__(self) -> None:
        self._engine = self.context.engine
        self._wire = self.context.wire(self.served)
        self._read = self._wire.read_step if self.form is Format.JSON and not self.chunk else None
        self._is_plain = self.answer_form is Format.JSON and not self.chunk
        self._stream = StreamDoor(self.key, self.key.name, self.version, "http")

    @property
    def serves_many(self) -> bool:
        """A chunk's answer depends on what its body asks for."""
        return not self.chunk

    def begin(self, body: bytes, done: Callable[[Result], None]) -> None:
        """Submit the timestep, or raise what is wrong with the body."""
        if self._read is not None:  # what nearly all are
            try:
                inputs, seq, after, create = self._read(body)
            except NOT_SOUND:
                pass
            else:
                if seq is not None and after is None and create == "auto" and self.idempotency_key is None:
                    self._engine.submit_plain(self._stream, inputs, seq, done, served=self.served)
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
            step = self._wire.steps(body, self.form)
            self._keep = step.keep
        else:
            step = self._wire.step(body, self.form)
        timestep = timestep_of(step, self.key, self.version, door="http", idempotency_key=self.idempotency_key)
        self._engine.submit(timestep, done, self.served)

    def encode(self, result: Any) -> bytes:
        """Return the answer to a prediction."""
        if self._is_plain:
            return write_json_step(result)
        return write_step(result, self.answer_form, chunk=self.chunk, keep=self._keep)


@dataclass(slots=True)
class ColumnsCall:
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

    context: Context
    served: ServedModel
    tenant: str
    chunk: bool
    version: int | None
    idempotency_key: str | None
    form: Format
    answer_form: Format
    _bulk: BulkBody = field(init=False)
    more_headers: ClassVar[None] = None
    serves_many: ClassVar[bool] = False

    def begin(self, body: bytes, done: Callable[[Results], None]) -> None:
        """Submit every timestep, or raise what is wrong with the body."""
        self._bulk = self.context.wire(self.served).bulk(body, self.form, chunk=self.chunk)
        submit_columns(
            self.context.engine,
            self._bulk,
            Roster(self.tenant, self.served.name),
            self.version,
            done,
            served=self.served,
            door="http",
            idempotency_key=self.idempotency_key,
        )

    def encode(self, result: Any) -> bytes:
        """Return the answer in columns, and count the rows that were refused."""
        document = columns_answer(self._bulk, result, self.served, self.answer_form)
        for row in () if isinstance(result, Predictions) else result:
            if isinstance(row, ServiceError):
                self.context.metrics.refusal(row.code)
        return encode(document, self.answer_form)


async def answered(call: Call, body: bytes) -> bytes:
    """Do what a call asks and return the body of the answer; the work goes on when the caller is cancelled.

    Raises:
        ServiceError: It was refused, or its outcome is not known; see `applied`.
    """
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    call.begin(body, lambda result: None if future.done() else future.set_result(result))
    result = await future
    if isinstance(result, ServiceError):
        raise result
    return call.encode(result)
