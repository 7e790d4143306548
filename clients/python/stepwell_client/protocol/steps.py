"""The client's protocol: requests, retries and resends, without network access and without a clock of its own.

An exchange is a generator: it yields a `ClientRequest`, receives the `RawReply` (or a `NoReply`), and returns the
result. `Client`, `AsyncClient` and `Feed` send the requests. All retries are made here. They are safe because a step
carries the stream's next position (`seq`) and the history that its handle has seen (`after`; for the first one,
`create: must`), by which the service distinguishes a retry from another step.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from stepwell_client.errors import ClientError
from stepwell_client.protocol import decoding
from stepwell_client.protocol.decoding import RawReply
from stepwell_client.protocol.exchange import Exchange
from stepwell_client.protocol.inputs import Inputs, Source, cast_inputs, packed, source_document
from stepwell_client.protocol.requests import ATTEMPT_S, ClientRequest, R, SentRequest, StreamCursor
from stepwell_client.protocol.resend_buffer import ResendBuffer
from stepwell_client.protocol.retry import RetryPolicy
from stepwell_client.results import Status, StepResult
from stepwell_client.wire.formats import Array
from stepwell_client.wire.ids import NAME
from stepwell_client.wire.outcomes import ReturnMode

T = TypeVar("T")
P = ParamSpec("P")

OnResend = Callable[[str, int, int], None]
"""Called with a stream's id, the number of its lost requests already resent, and the number to resend."""


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
        self._declared: dict[str, decoding.TensorInfo] = {}
        self._outputs: dict[str, decoding.TensorInfo] = {}
        self._is_durable = False  # whether a confirmed commit also survives a failover of the store

    @timed
    def describe(self, policy: RetryPolicy) -> Exchange[decoding.ModelInfo]:
        """Return the model's inputs and outputs."""
        return (yield from self._describe(policy))

    @timed
    def step(
        self,
        policy: RetryPolicy,
        cursor: StreamCursor,
        x: Inputs,
        returns: ReturnMode | None = None,
        source: Source | None = None,
    ) -> Exchange[StepResult]:
        """Step one stream by a timestep or by a chunk.

        Args:
            policy: The retries of this call.
            cursor: The stream; updated from the response.
            x: Shape `(*row)` per input; for a chunk `(T, *row)`.
            returns: None for a timestep; for a chunk, the predictions to return.
            source: Where the timesteps stand in their log. It identifies them to the service in place of the stream's
                position, since timesteps that are read again may have been applied long ago.
        """
        inputs = yield from self._prepare_inputs(x, policy)
        document: dict[str, Any] = {"inputs": packed(inputs)}
        if source is None:
            yield from self._ensure_cursor(cursor, policy)
            document |= cursor.identifiers()
        else:
            document["source"] = source_document(source)
        request = (
            self._step_request(cursor, document)
            if returns is None
            else self._chunk_request(cursor, document | {"return": returns})
        )
        if source is None:
            return (yield from self._apply(cursor, request, policy, _read_step))
        return (yield from self._apply_from_source(cursor, request, policy))

    @timed
    def resume(self, policy: RetryPolicy, cursor: StreamCursor) -> Exchange[int]:
        """Read a stream's position again and return its step; 0 if the stream does not exist."""
        self._forget_position(cursor)
        yield from self._ensure_cursor(cursor, policy)
        return cursor.step

    def status(self, cursor: StreamCursor) -> Exchange[Status]:
        """Read a stream's status, without changing the known position."""
        return (yield from self._status(cursor, self._retry_policy()))

    # ---------------------------------------------------------------- shared parts of exchanges

    def _apply(
        self, cursor: StreamCursor, request: ClientRequest, policy: RetryPolicy, read: Callable[[RawReply], R]
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

    def _apply_from_source(
        self, cursor: StreamCursor, request: ClientRequest, policy: RetryPolicy
    ) -> Exchange[StepResult]:
        """Send timesteps of a source; they are kept by it, so the client does not buffer them for a resend."""
        self._forget_position(cursor)
        reply = yield from self._send_with_retry(request, policy)
        return self._on_source_result(cursor, _read_step(reply))

    def _forget_position(self, cursor: StreamCursor) -> None:
        """Read the stream's position again before its next step without a source."""
        cursor.known = False
        self._discard_history(cursor)

    @staticmethod
    def _on_source_result(cursor: StreamCursor, result: StepResult) -> StepResult:
        return cursor.advance_to(result) if result.state_id else result

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

    def _send_with_retry(self, request: ClientRequest, policy: RetryPolicy) -> Exchange[RawReply]:
        """Send a request until it succeeds, fails for good, or the time is over.

        Raises:
            ClientError: The last error.
        """
        while True:
            left = policy.deadline - policy.clock() - request.wait
            reply = yield replace(request, timeout=max(0.001, min(left, ATTEMPT_S)))
            error = decoding.error_in(reply, mutates=request.mutates and request.method != "GET")
            if error is None:
                assert isinstance(reply, RawReply)
                return reply
            pause = policy.pause(error)
            if pause is None:
                try:
                    raise policy.final_error(error)
                finally:
                    del error  # it holds this frame: a cycle that would keep the stream's handle
            policy.in_doubt |= error.applied != "no"
            request = replace(request, wait=pause)

    def _fetch(self, request: ClientRequest, policy: RetryPolicy, kind: type[T]) -> Exchange[T]:
        """Send a request as `_send_with_retry` does, and return its decoded response."""
        return decoding.read((yield from self._send_with_retry(request, policy)), kind)

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
        return (yield from self._fetch(ClientRequest("GET", self._stream_path(cursor)), policy, Status))

    def _prepare_inputs(self, x: Inputs, policy: RetryPolicy) -> Exchange[dict[str, Array]]:
        """Return the inputs as arrays of the model's dtypes, which are read from the service once."""
        yield from self._ensure_described(policy)
        return cast_inputs(x, dtypes_of(self._declared))

    def _ensure_described(self, policy: RetryPolicy) -> Exchange[None]:
        if not self._declared:
            model = yield from self._describe(policy)
            if self._resend_buffer is not None:
                self._is_durable = yield from self._survives_failover(policy)
            self._outputs = {declared.name: declared for declared in model.outputs}
            self._declared = {declared.name: declared for declared in model.inputs}

    def _describe(self, policy: RetryPolicy) -> Exchange[decoding.ModelInfo]:
        return (yield from self._fetch(ClientRequest("GET", self.path), policy, decoding.ModelInfo))

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


def dtypes_of(declared: Mapping[str, decoding.TensorInfo]) -> dict[str, np.dtype[Any]]:
    """Return the dtypes of inputs or outputs, by name."""
    return {name: np.dtype(each.dtype) for name, each in declared.items()}


def _read_step(reply: RawReply) -> StepResult:
    return decoding.read(reply, decoding.StepReply).result()
