"""What the client asks and what it makes of the answers; no network, no clock of its own.

An exchange is a generator: it yields an `ClientRequest`, is sent the `Reply` (or `NoReply`, where none came), and returns the
result. `Client`, `AsyncClient` and `Feed` carry the asks, each in its own way. All retries are here, and they are
safe for one reason: a step carries the stream's next position (`seq`) and the history that its handle has seen
(`after`), so the service can tell a copy of it from another step.
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
A = TypeVar("A", bound=StepResult)
P = ParamSpec("P")

_ATTEMPT_S = 15.0  # more than the service's own default limit for a request
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


@dataclass(slots=True)
class StreamCursor:
    """Where one stream stands, as far as this client was told.

    Attributes:
        stream: Its id.
        step: Timesteps that it has consumed.
        state_id: Names its history; None for a stream that is still to begin.
        known: The two above were told, so the next step follows on them.
        in_doubt: The service may have applied a step since, of which no answer came.
        past: What it was sent, the oldest first, as far as it is kept.
    """

    stream: str
    step: int = 0
    state_id: str | None = None
    known: bool = False
    in_doubt: bool = False
    past: deque[SentRequest] = field(default_factory=deque)

    @classmethod
    def of(cls, stream: str) -> StreamCursor:
        """Return the place of a stream of which nothing is known.

        Raises:
            ClientError: `bad_request`: no stream can have this id.
        """
        if not is_stream_id(stream):
            refusal = bad_stream_id(stream)
            raise ClientError(refusal.code, refusal.problem, fix=refusal.fix)
        return cls(stream)

    def set(self, step: int, state_id: str | None) -> None:
        """Take note of where the stream stands."""
        self.step, self.state_id, self.known, self.in_doubt = step, state_id, True, False

    def advance_to(self, answer: A) -> A:
        """Stand where an answer says, and return it."""
        self.set(answer.step, answer.state_id)
        return answer


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A request to be sent.

    Attributes:
        method: Of HTTP.
        path: Below the service's address.
        document: The body, of plain values and bytes; None: no body.
        stream: The stream that it moves by a timestep: such an ask can go over a feed as well.
        key: The `Idempotency-Key`, or None.
        wait: Seconds to wait before it is sent.
        timeout: Seconds until its reply is given up.
        moves: It may move a stream, unless its method is GET.
    """

    method: str
    path: str
    document: Mapping[str, Any] | None = None
    stream: str | None = None
    key: str | None = None
    wait: float = 0.0
    timeout: float = _ATTEMPT_S
    moves: bool = True


Exchange = Generator[ClientRequest, Reply | NoReply, T]
Send = Callable[[ClientRequest], Awaitable[Reply | NoReply]]
OnResend = Callable[[str, int, int], None]
"""Told that so many of so many requests of a stream, which the store had lost, were sent again."""


@dataclass(slots=True)
class RetryPolicy:
    """How long a call goes on sending; its pauses grow, and are random so that many clients do not return at once.

    Attributes:
        until: The moment of `clock` when the call is given up.
        clock: Gives the time in seconds.
        jitter: Gives a number from 0 to 1.
        turn: Attempts that failed.
        doubt: One of them may have been applied.
    """

    until: float
    clock: Callable[[], float]
    jitter: Callable[[], float]
    turn: int = 0
    doubt: bool = False

    def pause(self, error: ClientError) -> float | None:
        """Return the seconds to wait before the same is sent again; None: it is not worth another try."""
        if error.retry != "same":
            return None
        longest: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self.turn, 10))
        pause = (error.retry_after or 0.0) + longest * self.jitter()
        self.turn += 1
        return pause if self.clock() + pause < self.until else None

    def final_error(self, error: ClientError, *, doubt: bool = False) -> ClientError:
        """Return a last error that tells of all attempts: after a doubtful one, "no" is "unknown"."""
        if (doubt or self.doubt) and error.applied == "no":
            error.applied = "unknown"
        return error


def timed(
    method: Callable[Concatenate[Any, RetryPolicy, P], Exchange[T]],
) -> Callable[Concatenate[Any, P], Exchange[T]]:
    """Start a call's time when the call is made: an exchange itself starts once its stream's other calls are done."""

    @functools.wraps(method)
    def start(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Exchange[T]:
        return method(self, self._retry_policy(), *args, **kwargs)

    return start


class ModelProtocol:
    """The exchanges about one model and its streams.

    Attributes:
        path: The model's path below the service's address.
        timeout: Seconds that one call may take, with all its retries.
    """

    def __init__(
        self,
        model: str,
        timeout: float,
        *,
        memory: ResendBuffer | None = None,
        on_resend: OnResend | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Prepare.

        Args:
            model: The model's name.
            timeout: Seconds that one call may take, with all its retries.
            memory: Keeps what was sent, for a store that loses it; None: nothing is kept.
            on_resend: Told of what is sent again.
            clock: Gives the time in seconds.
            jitter: Gives a number from 0 to 1.

        Raises:
            ClientError: `bad_request`: no model can have this name.
        """
        if not NAME.fullmatch(model):
            raise ClientError(
                "bad_request",
                f"The model's name is {model[:140]!a}; expected {NAME.pattern}.",
                fix="Name a model that GET /v1/models lists.",
            )
        self.path = f"/v1/models/{model}"
        self.timeout = timeout
        self._resend_buffer = memory
        self._on_resend = on_resend
        self._clock = clock
        self._jitter = jitter
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._is_durable = False  # what is answered cannot be lost any more

    @timed
    def step(
        self, patience: RetryPolicy, place: StreamCursor, x: Inputs, returns: ReturnMode | None = None
    ) -> Exchange[StepResult]:
        """Move one stream by a timestep, or by a chunk of them.

        Args:
            patience: How long to go on.
            place: The stream; it is moved along when the answer comes.
            x: Shape `(*row)` per input, for a chunk `(T, *row)`.
            returns: None for a timestep; for a chunk, the predictions that are wanted.
        """
        inputs = yield from self._inputs(x, patience)
        yield from self._ensure_cursor(place, patience)
        document = {"inputs": packed(inputs), "seq": place.step + 1}
        if place.state_id is not None:
            document["after"] = place.state_id
        ask = self._step(place, document) if returns is None else self._steps(place, document | {"return": returns})
        return (yield from self._move(place, ask, patience, _moved))

    @timed
    def step_many(
        self, patience: RetryPolicy, places: Sequence[StreamCursor], xs: Mapping[str, Inputs]
    ) -> Exchange[dict[str, StepResult | ClientError]]:
        """Move many streams by one timestep each; of those that failed, the ones worth it are sent again.

        Args:
            patience: How long to go on.
            places: The streams, each once.
            xs: What each takes, by stream id.
        """
        rows: dict[str, dict[str, Array]] = {}
        for place in places:
            rows[place.stream] = yield from self._inputs(xs[place.stream], patience)
            yield from self._ensure_cursor(place, patience)
        were_in_doubt = [place.in_doubt for place in places]
        for place in places:
            place.in_doubt = True
        results: dict[str, StepResult | ClientError] = {}
        try:
            results = yield from self._move_all(places, rows, patience)
        except ClientError as error:
            results = dict.fromkeys(rows, error)
            raise
        finally:
            for place, was_in_doubt in zip(places, were_in_doubt, strict=True):
                result = results.get(place.stream)
                if isinstance(result, ClientError):
                    place.in_doubt = was_in_doubt or result.applied != "no"
        return results

    @timed
    def reset(self, patience: RetryPolicy, place: StreamCursor) -> Exchange[StepResult]:
        """Bring a stream back to its initial state, from where it stands."""
        yield from self._ensure_cursor(place, patience)
        document = {} if place.state_id is None else {"after": place.state_id}
        ask = ClientRequest("POST", f"{self._path(place)}/reset", document, key=uuid.uuid4().hex)
        reply = yield from self._send_with_retry(ask, patience)
        return self._start_over(place, decoding.read(reply, decoding.StepReply).answer())

    @timed
    def resume(self, patience: RetryPolicy, place: StreamCursor) -> Exchange[int]:
        """Read where a stream stands, whatever was known, and return its step; 0 where there is no such stream."""
        place.known = False
        self._forget(place)
        yield from self._ensure_cursor(place, patience)
        return place.step

    def status(self, place: StreamCursor) -> Exchange[Status]:
        """Read a stream's status; the place stays as it is."""
        return (yield from self._status(place, self._retry_policy()))

    @timed
    def delete(self, patience: RetryPolicy, place: StreamCursor) -> Exchange[None]:
        """Forget a stream."""
        yield from self._send_with_retry(ClientRequest("DELETE", self._path(place), key=uuid.uuid4().hex), patience)
        place.set(0, None)
        self._forget(place)

    # ---------------------------------------------------------------- parts of exchanges

    def _move_all(
        self, places: Sequence[StreamCursor], rows: Mapping[str, Mapping[str, Array]], patience: RetryPolicy
    ) -> Exchange[dict[str, StepResult | ClientError]]:
        """Send a timestep of each stream in columns, and those that failed again where that is worth it."""
        results: dict[str, StepResult | ClientError] = {}
        doubts: set[str] = set()
        waiting, wait = list(places), 0.0
        while waiting:
            document = {
                "streams": [place.stream for place in waiting],
                "inputs": packed(stack([rows[place.stream] for place in waiting])),
                "seq": [place.step + 1 for place in waiting],
                "after": [place.state_id for place in waiting],
            }
            try:
                reply = yield from self._send_with_retry(
                    ClientRequest("POST", f"{self.path}/step", document, wait=wait), patience
                )
                answers = decoding.answers_in(reply, len(waiting))
            except ClientError as error:
                if not results:
                    raise
                return results | {place.stream: error for place in waiting}  # what was answered before is kept
            again: list[tuple[StreamCursor, ClientError]] = []
            fell_back = False
            for place, result in zip(waiting, answers, strict=True):
                if isinstance(result, StepResult):
                    alone = {"inputs": packed(rows[place.stream]), "seq": place.step + 1}
                    alone |= {} if place.state_id is None else {"after": place.state_id}
                    results[place.stream] = self._on_reply(place, self._step(place, alone), result)
                    continue
                try:
                    if (yield from self._resend_lost(place, result, patience)):
                        again.append((place, result))
                        fell_back = True
                        continue
                except ClientError as error:
                    results[place.stream] = error
                    continue
                results[place.stream] = patience.final_error(result, doubt=place.stream in doubts)
                if result.applied != "no":
                    doubts.add(place.stream)
                if result.retry == "same":
                    again.append((place, result))
            pause = 0.0 if fell_back else patience.pause(again[0][1]) if again else None
            if pause is None:
                break
            waiting, wait = [place for place, _ in again], pause
        return results

    def _move(
        self, place: StreamCursor, ask: ClientRequest, patience: RetryPolicy, read: Callable[[Reply], A]
    ) -> Exchange[A]:
        """Send what moves a stream; where the store fell back, bring the stream forward again first."""
        was_in_doubt, place.in_doubt = place.in_doubt, True
        try:
            while True:
                try:
                    reply = yield from self._send_with_retry(ask, patience)
                except ClientError as error:
                    if not (yield from self._resend_lost(place, error, patience)):
                        raise
                else:
                    return self._on_reply(place, ask, read(reply))
        except ClientError as error:
            place.in_doubt = was_in_doubt or error.applied != "no"
            raise

    def _resend_lost(self, place: StreamCursor, error: ClientError, patience: RetryPolicy) -> Exchange[bool]:
        """Send again what the store has lost of what it had confirmed; False: that is not what happened.

        A stream that fell back stands where it has been before, by its step and its state id; one that somebody
        reset or moved stands where this handle has never been, and is left alone.
        """
        if self._resend_buffer is None or error.retry != "resend_from" or error.step is None or error.state_id is None:
            return False
        lost = self._resend_buffer.since(place, error.step, error.state_id)
        for at, sent in enumerate(lost):
            self._report_resend(place.stream, at, len(lost))
            reply = yield from self._send_with_retry(sent.request, patience)
            if decoding.read(reply, decoding.StepReply).state_id != sent.state_id:
                raise ClientError(
                    "state_changed",
                    f"The stream fell back to step {error.step}, and came to another history than before on its way.",
                    fix="Look at it with `status`; then `resume`, or reset it.",
                    step=sent.step,
                )
        if lost:
            self._report_resend(place.stream, len(lost), len(lost))
        return bool(lost)

    def _on_reply(self, place: StreamCursor, ask: ClientRequest, answer: A) -> A:
        """Go where an answer says, and keep what brought the stream there."""
        if self._resend_buffer is not None and not self._is_durable:
            self._resend_buffer.keep(SentRequest(ask, place, place.step, place.state_id, answer.state_id))
        return place.advance_to(answer)

    def _start_over(self, place: StreamCursor, answer: StepResult) -> StepResult:
        """Go where an answer says, which does not follow on what was sent before."""
        self._forget(place)
        return place.advance_to(answer)

    def _forget(self, place: StreamCursor) -> None:
        if self._resend_buffer is not None:
            self._resend_buffer.forget(place)

    def _report_resend(self, stream: str, done: int, total: int) -> None:
        if self._on_resend is not None:
            self._on_resend(stream, done, total)

    def _step(self, place: StreamCursor, document: Mapping[str, Any]) -> ClientRequest:
        return ClientRequest("POST", f"{self._path(place)}/step", document, place.stream)

    def _steps(self, place: StreamCursor, document: Mapping[str, Any]) -> ClientRequest:
        return ClientRequest("POST", f"{self._path(place)}/steps", document)

    def _send_with_retry(self, ask: ClientRequest, patience: RetryPolicy) -> Exchange[Reply]:
        """Send until there is an answer other than "the same again", or no time is left.

        Raises:
            ClientError: The last refusal, or that no answer came.
        """
        while True:
            left = patience.until - patience.clock() - ask.wait
            got = yield replace(ask, timeout=max(0.001, min(left, _ATTEMPT_S)))
            error = decoding.error_in(got, moves=ask.moves and ask.method != "GET")
            if error is None:
                assert isinstance(got, Reply)
                return got
            pause = patience.pause(error)
            if pause is None:
                raise patience.final_error(error)
            patience.doubt |= error.applied != "no"
            ask = replace(ask, wait=pause)

    def _ensure_cursor(self, place: StreamCursor, patience: RetryPolicy) -> Exchange[None]:
        """Read where a stream stands, unless that is known."""
        if place.known:
            return
        try:
            status = yield from self._status(place, patience)
        except ClientError as error:
            if error.code != "stream_not_found":
                raise
            place.set(0, None)
        else:
            place.set(status.step, status.state_id)

    def _status(self, place: StreamCursor, patience: RetryPolicy) -> Exchange[Status]:
        reply = yield from self._send_with_retry(ClientRequest("GET", self._path(place)), patience)
        return decoding.read(reply, Status)

    def _inputs(self, x: Inputs, patience: RetryPolicy) -> Exchange[dict[str, Array]]:
        """Return the inputs as arrays of the types that the model declares; these are asked for once."""
        if not self._dtypes:
            reply = yield from self._send_with_retry(ClientRequest("GET", self.path), patience)
            described = decoding.read(reply, decoding.ModelInfo)
            if self._resend_buffer is not None:
                self._is_durable = yield from self._confirms_for_good(patience)
            self._dtypes = {one.name: np.dtype(one.dtype) for one in described.inputs}
        return cast_inputs(x, self._dtypes)

    def _confirms_for_good(self, patience: RetryPolicy) -> Exchange[bool]:
        """Return whether an answered step survives also a failover of the store."""
        try:
            reply = yield from self._send_with_retry(ClientRequest("GET", "/v1/info"), patience)
        except ClientError:
            return False
        return decoding.read(reply, decoding.ServiceInfo).durability == "replica"

    def _path(self, place: StreamCursor) -> str:
        return f"{self.path}/streams/{place.stream}"

    def _retry_policy(self) -> RetryPolicy:
        return RetryPolicy(self._clock() + self.timeout, self._clock, self._jitter)


def busy(stream: str, timeout: float) -> ClientError:
    """Return the refusal of a call whose time went by while other calls moved its stream."""
    return ClientError(
        "no_answer",
        f"Stream {stream!r} was busy with other calls of this client for {timeout:g} s, and this one was not sent.",
        fix="Make the same call again, or give the client a longer timeout.",
        retry="same",
    )


def drive(exchange: Exchange[T], send: Callable[[ClientRequest], Reply | NoReply]) -> T:
    """Carry an exchange to its end and return its result; `send` never raises for a lost connection."""
    try:
        ask = next(exchange)
        while True:
            ask = exchange.send(send(ask))
    except StopIteration as end:
        result: T = end.value
        return result


async def drive_async(exchange: Exchange[T], send: Send) -> T:
    """Do what `drive` does, with a `send` to be awaited."""
    try:
        ask = next(exchange)
        while True:
            ask = exchange.send(await send(ask))
    except StopIteration as end:
        result: T = end.value
        return result


def _moved(reply: Reply) -> StepResult:
    return decoding.read(reply, decoding.StepReply).answer()


def packed(inputs: Mapping[str, Array]) -> dict[str, Any]:
    """Return arrays as they are sent."""
    return {name: encode_tensor(array, MSGPACK) for name, array in inputs.items()}
