"""The client's protocol: requests, retries and resends, without network access and without a clock of its own.

An exchange is a generator: it yields a `ClientRequest`, receives the `Reply` (or a `NoReply`), and returns the
result. `Client`, `AsyncClient` and `Feed` send the requests. All retries are made here. They are safe because a step
carries the stream's next position (`seq`) and the history that its handle has seen (`after`), by which the service
distinguishes a retry from another step.
"""

from __future__ import annotations

import functools
import random
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from model_export.manifest import NAME, Array
from service.client import decoding
from service.client.decoding import NoReply, Reply
from service.client.inputs import Inputs, cast_inputs, stack
from service.client.resend_buffer import ResendBuffer, SentRequest
from service.client.results import ClientError, Status, StepResult
from service.codec.formats import MSGPACK
from service.codec.responses import encode_tensor
from service.ids import bad_stream_id, is_stream_id
from service.types import ReturnMode

T = TypeVar("T")
R = TypeVar("R", bound=StepResult)
P = ParamSpec("P")

_ATTEMPT_S = 15.0  # longer than the service's default limit for a request
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


@dataclass(slots=True)
class StreamCursor:
    """The last position of one stream that this client has received.

    Attributes:
        stream: The stream's id.
        step: Timesteps that the stream has consumed.
        state_id: The stream's state id; None if the stream does not exist yet.
        known: `step` and `state_id` were received, so the next step follows on them.
        in_doubt: The service may have applied a later step whose response did not arrive.
        past: The buffered requests of the stream, oldest first.
    """

    stream: str
    step: int = 0
    state_id: str | None = None
    known: bool = False
    in_doubt: bool = False
    past: deque[SentRequest] = field(default_factory=deque)

    @classmethod
    def of(cls, stream: str) -> StreamCursor:
        """Return the cursor of a stream whose position is not known yet.

        Raises:
            ClientError: `bad_request`: the id is not a valid stream id.
        """
        if not is_stream_id(stream):
            invalid = bad_stream_id(stream)
            raise ClientError(invalid.code, invalid.problem, fix=invalid.fix)
        return cls(stream)

    def set(self, step: int, state_id: str | None) -> None:
        """Record the stream's position."""
        self.step, self.state_id, self.known, self.in_doubt = step, state_id, True, False

    def advance_to(self, result: R) -> R:
        """Record the position of a result, and return the result."""
        self.set(result.step, result.state_id)
        return result


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A request to send.

    Attributes:
        method: The HTTP method.
        path: The path below the service's address.
        document: The body, of plain values and bytes; None for no body.
        stream: For a step of one timestep, the stream's id; such a request may also be sent over a feed.
        key: The `Idempotency-Key`, or None.
        wait: Seconds to wait before sending.
        timeout: Seconds to wait for the reply.
        mutates: The request can change a stream, unless its method is GET.
    """

    method: str
    path: str
    document: Mapping[str, Any] | None = None
    stream: str | None = None
    key: str | None = None
    wait: float = 0.0
    timeout: float = _ATTEMPT_S
    mutates: bool = True


Exchange = Generator[ClientRequest, Reply | NoReply, T]
Send = Callable[[ClientRequest], Awaitable[Reply | NoReply]]
OnResend = Callable[[str, int, int], None]
"""Called with a stream's id, the number of its lost requests already resent, and the number to resend."""


@dataclass(slots=True)
class RetryPolicy:
    """Retries of one call, with exponential back-off and jitter so that clients retry at different times.

    Attributes:
        deadline: Time of `clock` at which the call fails.
        clock: Returns the time in seconds.
        jitter: Returns a number from 0 to 1.
        failures: Attempts that failed.
        in_doubt: A failed attempt may have been applied.
    """

    deadline: float
    clock: Callable[[], float]
    jitter: Callable[[], float]
    failures: int = 0
    in_doubt: bool = False

    def pause(self, error: ClientError) -> float | None:
        """Return the seconds to wait before the next attempt; None if the error is final or the time is over."""
        if error.retry != "same":
            return None
        longest: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self.failures, 10))
        pause = (error.retry_after or 0.0) + longest * self.jitter()
        self.failures += 1
        return pause if self.clock() + pause < self.deadline else None

    def final_error(self, error: ClientError, *, in_doubt: bool = False) -> ClientError:
        """Return the last error; `applied` is "unknown" instead of "no" if an earlier attempt may have been applied."""
        if (in_doubt or self.in_doubt) and error.applied == "no":
            error.applied = "unknown"
        return error


def timed(
    method: Callable[Concatenate[Any, RetryPolicy, P], Exchange[T]],
) -> Callable[Concatenate[Any, P], Exchange[T]]:
    """Start the timeout when the method is called: the exchange itself starts after the stream's earlier calls."""

    @functools.wraps(method)
    def start(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Exchange[T]:
        return method(self, self._retry_policy(), *args, **kwargs)

    return start


class ModelProtocol:
    """The exchanges of one model and its streams.

    Attributes:
        path: The model's path below the service's address.
        timeout: Seconds that one call may take, including its retries.
    """

    def __init__(
        self,
        model: str,
        timeout: float,
        *,
        resend_buffer: ResendBuffer | None = None,
        on_resend: OnResend | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Create the exchanges of a model.

        Args:
            model: The model's name.
            timeout: Seconds that one call may take, including its retries.
            resend_buffer: Keeps sent requests, to resend those that the store loses; None keeps none.
            on_resend: Called while requests are resent.
            clock: Returns the time in seconds.
            jitter: Returns a number from 0 to 1.

        Raises:
            ClientError: `bad_request`: the name is not a valid model name.
        """
        if not NAME.fullmatch(model):
            raise ClientError(
                "bad_request",
                f"The model's name is {model[:140]!a}; expected {NAME.pattern}.",
                fix="Name a model that GET /v1/models lists.",
            )
        self.path = f"/v1/models/{model}"
        self.timeout = timeout
        self._resend_buffer = resend_buffer
        self._on_resend = on_resend
        self._clock = clock
        self._jitter = jitter
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._is_durable = False  # whether a confirmed commit also survives a failover of the store

    @timed
    def step(
        self, policy: RetryPolicy, cursor: StreamCursor, x: Inputs, returns: ReturnMode | None = None
    ) -> Exchange[StepResult]:
        """Step one stream by a timestep or by a chunk.

        Args:
            policy: The retries of this call.
            cursor: The stream; updated from the response.
            x: Shape `(*row)` per input; for a chunk `(T, *row)`.
            returns: None for a timestep; for a chunk, the predictions to return.
        """
        inputs = yield from self._prepare_inputs(x, policy)
        yield from self._ensure_cursor(cursor, policy)
        document = {"inputs": packed(inputs), "seq": cursor.step + 1}
        if cursor.state_id is not None:
            document["after"] = cursor.state_id
        request = (
            self._step_request(cursor, document)
            if returns is None
            else self._chunk_request(cursor, document | {"return": returns})
        )
        return (yield from self._apply(cursor, request, policy, _read_step))

    @timed
    def step_many(
        self, policy: RetryPolicy, cursors: Sequence[StreamCursor], xs: Mapping[str, Inputs]
    ) -> Exchange[dict[str, StepResult | ClientError]]:
        """Step many streams by one timestep each; streams with a transient error are retried.

        Args:
            policy: The retries of this call.
            cursors: The streams, each once.
            xs: The inputs by stream id.
        """
        rows: dict[str, dict[str, Array]] = {}
        for cursor in cursors:
            rows[cursor.stream] = yield from self._prepare_inputs(xs[cursor.stream], policy)
            yield from self._ensure_cursor(cursor, policy)
        were_in_doubt = [cursor.in_doubt for cursor in cursors]
        for cursor in cursors:
            cursor.in_doubt = True
        results: dict[str, StepResult | ClientError] = {}
        try:
            results = yield from self._apply_bulk(cursors, rows, policy)
        except ClientError as error:
            results = dict.fromkeys(rows, error)
            raise
        finally:
            for cursor, was_in_doubt in zip(cursors, were_in_doubt, strict=True):
                result = results.get(cursor.stream)
                if isinstance(result, ClientError):
                    cursor.in_doubt = was_in_doubt or result.applied != "no"
        return results

    @timed
    def reset(self, policy: RetryPolicy, cursor: StreamCursor) -> Exchange[StepResult]:
        """Reset a stream to its initial state, if its position is still the known one."""
        yield from self._ensure_cursor(cursor, policy)
        document = {} if cursor.state_id is None else {"after": cursor.state_id}
        request = ClientRequest("POST", f"{self._stream_path(cursor)}/reset", document, key=uuid.uuid4().hex)
        reply = yield from self._send_with_retry(request, policy)
        return self._restart_at(cursor, decoding.read(reply, decoding.StepReply).result())

    @timed
    def resume(self, policy: RetryPolicy, cursor: StreamCursor) -> Exchange[int]:
        """Read a stream's position again and return its step; 0 if the stream does not exist."""
        cursor.known = False
        self._discard_history(cursor)
        yield from self._ensure_cursor(cursor, policy)
        return cursor.step

    def status(self, cursor: StreamCursor) -> Exchange[Status]:
        """Read a stream's status, without changing the known position."""
        return (yield from self._status(cursor, self._retry_policy()))

    @timed
    def delete(self, policy: RetryPolicy, cursor: StreamCursor) -> Exchange[None]:
        """Delete a stream."""
        yield from self._send_with_retry(
            ClientRequest("DELETE", self._stream_path(cursor), key=uuid.uuid4().hex), policy
        )
        cursor.set(0, None)
        self._discard_history(cursor)

    # ---------------------------------------------------------------- shared parts of exchanges

    def _apply_bulk(
        self, cursors: Sequence[StreamCursor], rows: Mapping[str, Mapping[str, Array]], policy: RetryPolicy
    ) -> Exchange[dict[str, StepResult | ClientError]]:
        """Send a timestep of each stream as a bulk request, and retry the streams with a transient error."""
        results: dict[str, StepResult | ClientError] = {}
        in_doubt: set[str] = set()
        waiting, wait = list(cursors), 0.0
        while waiting:
            document = {
                "streams": [cursor.stream for cursor in waiting],
                "inputs": packed(stack([rows[cursor.stream] for cursor in waiting])),
                "seq": [cursor.step + 1 for cursor in waiting],
                "after": [cursor.state_id for cursor in waiting],
            }
            try:
                reply = yield from self._send_with_retry(
                    ClientRequest("POST", f"{self.path}/step", document, wait=wait), policy
                )
                bulk = decoding.bulk_results(reply, len(waiting))
            except ClientError as error:
                if not results:
                    raise
                return results | {cursor.stream: error for cursor in waiting}  # keep the results of earlier attempts
            again: list[tuple[StreamCursor, ClientError]] = []
            rolled_back = False
            for cursor, result in zip(waiting, bulk, strict=True):
                if isinstance(result, StepResult):
                    single = {"inputs": packed(rows[cursor.stream]), "seq": cursor.step + 1}
                    single |= {} if cursor.state_id is None else {"after": cursor.state_id}
                    results[cursor.stream] = self._on_result(cursor, self._step_request(cursor, single), result)
                    continue
                try:
                    if (yield from self._resend_lost(cursor, result, policy)):
                        again.append((cursor, result))
                        rolled_back = True
                        continue
                except ClientError as error:
                    results[cursor.stream] = error
                    continue
                results[cursor.stream] = policy.final_error(result, in_doubt=cursor.stream in in_doubt)
                if result.applied != "no":
                    in_doubt.add(cursor.stream)
                if result.retry == "same":
                    again.append((cursor, result))
            pause = 0.0 if rolled_back else policy.pause(again[0][1]) if again else None
            if pause is None:
                break
            waiting, wait = [cursor for cursor, _ in again], pause
        return results

    def _apply(
        self, cursor: StreamCursor, request: ClientRequest, policy: RetryPolicy, read: Callable[[Reply], R]
    ) -> Exchange[R]:
        """Send a request that changes a stream; if the store rolled back, resend the stream's lost requests first."""
        was_in_doubt, cursor.in_doubt = cursor.in_doubt, True
        try:
            while True:
                try:
                    reply = yield from self._send_with_retry(request, policy)
                except ClientError as error:
                    if not (yield from self._resend_lost(cursor, error, policy)):
                        raise
                else:
                    return self._on_result(cursor, request, read(reply))
        except ClientError as error:
            cursor.in_doubt = was_in_doubt or error.applied != "no"
            raise

    def _resend_lost(self, cursor: StreamCursor, error: ClientError, policy: RetryPolicy) -> Exchange[bool]:
        """Resend the confirmed requests that the store has lost; returns False if it lost none.

        A stream that the store rolled back is at an earlier step and state id of this handle. A stream that another
        writer reset or stepped is at a position that this handle never had, and nothing is resent.
        """
        if self._resend_buffer is None or error.retry != "resend_from" or error.step is None or error.state_id is None:
            return False
        lost = self._resend_buffer.since(cursor, error.step, error.state_id)
        for done, sent in enumerate(lost):
            self._report_resend(cursor.stream, done, len(lost))
            reply = yield from self._send_with_retry(sent.request, policy)
            if decoding.read(reply, decoding.StepReply).state_id != sent.state_id:
                raise ClientError(
                    "state_changed",
                    f"The store rolled stream {cursor.stream!r} back to step {error.step}, and resending its timesteps "
                    "led to another history than before.",
                    fix="Check it with `status`, then `resume` or reset it.",
                    step=sent.step,
                )
        if lost:
            self._report_resend(cursor.stream, len(lost), len(lost))
        return bool(lost)

    def _on_result(self, cursor: StreamCursor, request: ClientRequest, result: R) -> R:
        """Advance the cursor to a result, and keep its request for a resend."""
        if self._resend_buffer is not None and not self._is_durable:
            self._resend_buffer.keep(SentRequest(request, cursor, cursor.step, cursor.state_id, result.state_id))
        return cursor.advance_to(result)

    def _restart_at(self, cursor: StreamCursor, result: StepResult) -> StepResult:
        """Set the cursor to a result that does not follow on the earlier requests."""
        self._discard_history(cursor)
        return cursor.advance_to(result)

    def _discard_history(self, cursor: StreamCursor) -> None:
        if self._resend_buffer is not None:
            self._resend_buffer.discard(cursor)

    def _report_resend(self, stream: str, done: int, total: int) -> None:
        if self._on_resend is not None:
            self._on_resend(stream, done, total)

    def _step_request(self, cursor: StreamCursor, document: Mapping[str, Any]) -> ClientRequest:
        return ClientRequest("POST", f"{self._stream_path(cursor)}/step", document, cursor.stream)

    def _chunk_request(self, cursor: StreamCursor, document: Mapping[str, Any]) -> ClientRequest:
        return ClientRequest("POST", f"{self._stream_path(cursor)}/steps", document)

    def _send_with_retry(self, request: ClientRequest, policy: RetryPolicy) -> Exchange[Reply]:
        """Send a request until it succeeds, fails for good, or the time is over.

        Raises:
            ClientError: The last error.
        """
        while True:
            left = policy.deadline - policy.clock() - request.wait
            reply = yield replace(request, timeout=max(0.001, min(left, _ATTEMPT_S)))
            error = decoding.error_in(reply, mutates=request.mutates and request.method != "GET")
            if error is None:
                assert isinstance(reply, Reply)
                return reply
            pause = policy.pause(error)
            if pause is None:
                try:
                    raise policy.final_error(error)
                finally:
                    del error  # it holds this frame: a cycle that would keep the stream's handle
            policy.in_doubt |= error.applied != "no"
            request = replace(request, wait=pause)

    def _ensure_cursor(self, cursor: StreamCursor, policy: RetryPolicy) -> Exchange[None]:
        """Read a stream's position, unless it is known."""
        if cursor.known:
            return
        try:
            status = yield from self._status(cursor, policy)
        except ClientError as error:
            if error.code != "stream_not_found":
                raise
            cursor.set(0, None)
        else:
            cursor.set(status.step, status.state_id)

    def _status(self, cursor: StreamCursor, policy: RetryPolicy) -> Exchange[Status]:
        reply = yield from self._send_with_retry(ClientRequest("GET", self._stream_path(cursor)), policy)
        return decoding.read(reply, Status)

    def _prepare_inputs(self, x: Inputs, policy: RetryPolicy) -> Exchange[dict[str, Array]]:
        """Return the inputs as arrays of the model's dtypes, which are read from the service once."""
        if not self._dtypes:
            reply = yield from self._send_with_retry(ClientRequest("GET", self.path), policy)
            model = decoding.read(reply, decoding.ModelInfo)
            if self._resend_buffer is not None:
                self._is_durable = yield from self._survives_failover(policy)
            self._dtypes = {declared.name: np.dtype(declared.dtype) for declared in model.inputs}
        return cast_inputs(x, self._dtypes)

    def _survives_failover(self, policy: RetryPolicy) -> Exchange[bool]:
        """Return whether a confirmed step survives a failover of the store."""
        try:
            reply = yield from self._send_with_retry(ClientRequest("GET", "/v1/info"), policy)
        except ClientError:
            return False
        return decoding.read(reply, decoding.ServiceInfo).durability == "replica"

    def _stream_path(self, cursor: StreamCursor) -> str:
        return f"{self.path}/streams/{cursor.stream}"

    def _retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self._clock() + self.timeout, self._clock, self._jitter)


def busy(stream: str, timeout: float) -> ClientError:
    """Return the error of a call that timed out while it waited for other calls of its stream."""
    return ClientError(
        "no_answer",
        f"Stream {stream!r} was busy with other calls of this client for {timeout:g} s; this call was not sent.",
        fix="Repeat the call, or give the client a longer timeout.",
        retry="same",
    )


def drive(exchange: Exchange[T], send: Callable[[ClientRequest], Reply | NoReply]) -> T:
    """Run an exchange to its end and return its result; `send` returns a `NoReply` for a lost connection."""
    try:
        request = next(exchange)
        while True:
            request = exchange.send(send(request))
    except StopIteration as end:
        result: T = end.value
        return result


async def drive_async(exchange: Exchange[T], send: Send) -> T:
    """Do what `drive` does, with an asynchronous `send`."""
    try:
        request = next(exchange)
        while True:
            request = exchange.send(await send(request))
    except StopIteration as end:
        result: T = end.value
        return result


def _read_step(reply: Reply) -> StepResult:
    return decoding.read(reply, decoding.StepReply).result()


def packed(inputs: Mapping[str, Array]) -> dict[str, Any]:
    """Return arrays encoded for a msgpack body."""
    return {name: encode_tensor(array, MSGPACK) for name, array in inputs.items()}
