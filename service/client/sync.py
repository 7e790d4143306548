"""`Client`: streams for scripts and threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TypeVar

import httpx

from service.client import http_transport
from service.client.deadline import Deadline, limit
from service.client.decoding import NoReply, Reply
from service.client.handles import KEEP_STREAMS, Handles
from service.client.inputs import Inputs
from service.client.protocol import ClientRequest, Exchange, OnResend, StreamCursor, busy, drive
from service.client.replay import timesteps_of, with_bar
from service.client.resend_buffer import KEEP_BYTES, ResendBuffer
from service.client.results import ClientError, Event, Gap, Rollout, Snapshot, State, Status, StepResult
from service.client.stream_ops import StreamOps
from service.client.watch import OpenWatches, WatchCursor, follow
from service.types import ReturnMode

T = TypeVar("T")


class Client:
    """A service. Threads may share it."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = 60.0,
        *,
        keep_bytes: int = KEEP_BYTES,
        keep_streams: int = KEEP_STREAMS,
        on_resend: OnResend | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: Where the service is, `http://HOST:PORT`.
            key: API key, where the service asks for one.
            timeout: Seconds that one call may take, with all its retries and with waiting for the stream's other calls.
            keep_bytes: Memory for what was sent, which is sent again where the store loses it; 0: nothing is kept.
            keep_streams: Handles that a model keeps although nobody else holds them, those used last. A handle that was
                dropped reads from the service where its stream stands.
            on_resend: Told of what is sent again: the stream, how many requests were, and of how many.

        Raises:
            ClientError: `bad_url`.
        """
        self._http = httpx.Client(**http_transport.options(url, key))
        self._deadline = Deadline()
        limit(self._http, self._deadline)
        self._timeout = timeout
        self._keep_streams = keep_streams
        self._memory = ResendBuffer(keep_bytes) if keep_bytes else None
        self._on_resend = on_resend
        self._watches = OpenWatches()

    def model(self, name: str) -> Model:
        """Return a model, by its name.

        What is known of its streams is kept in what is returned: two of them are two writers.
        """
        exchanges = StreamOps(name, self._timeout, memory=self._memory, on_resend=self._on_resend)
        return Model(self, name, exchanges, self._keep_streams)

    def close(self) -> None:
        """Close the connections; watches end."""
        self._watches.close()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, exchange: Exchange[T]) -> T:
        """Carry an exchange to its end and return its result."""
        return drive(exchange, self._send)

    def watch(self, model: str, stream: str | None, prefix: str, since: int | None, *, inputs: bool) -> Any:
        """Follow commits; use `Model.watch`."""
        address = http_transport.feed_address(self._http, "/v1/watch")
        return follow(WatchCursor(address, model, stream, prefix, since, inputs=inputs), self._watches)

    def _send(self, ask: ClientRequest) -> Reply | NoReply:
        self._watches.closed.wait(ask.wait)
        if self._watches.closed.is_set():
            raise http_transport.closed()
        self._deadline.at = time.monotonic() + ask.timeout
        try:
            return http_transport.reply(self._http.request(**http_transport.request(ask)))
        except httpx.RequestError as exc:
            return http_transport.lost(exc, self._http.base_url)


class Model:
    """A model of a service, and what is known of its streams. Threads may share it."""

    def __init__(self, client: Client, name: str, exchanges: StreamOps, keep_streams: int) -> None:
        """Use `Client.model`."""
        self.name = name
        self._client = client
        self._exchanges = exchanges
        self._handles = Handles(lambda place: Stream(self, client, exchanges, place), keep_streams)

    def stream(self, name: str) -> Stream:
        """Return a stream, by its id; asked again, the same.

        Raises:
            ClientError: `bad_request`: no stream can have this id.
        """
        return self._handles.get(name)

    def step_many(self, inputs: Mapping[str, Inputs]) -> dict[str, StepResult | ClientError]:
        """Move many streams by one timestep each, in one request.

        Args:
            inputs: What each stream takes, by its id; shape `(*row)` per input.

        Returns:
            An answer per stream, or the error where it failed: each stands alone. `created` is not told here.

        Raises:
            ClientError: No stream was moved, or for none is it known.
        """
        streams = [self.stream(name) for name in sorted(inputs)]  # in one order, so that no two calls lock each other
        exchange = self._exchanges.step_many([stream._place for stream in streams], inputs)
        with _turns(streams, self._exchanges.timeout):
            return self._client.run(exchange)

    def watch(
        self, stream: str | None = None, *, prefix: str = "", since: int | None = None, inputs: bool = False
    ) -> Iterator[Event | Gap]:
        """Follow predictions as they are committed, whoever sends the timesteps, without end.

        A lost connection is opened again. One stream is gone on with after the last step that was told; what is not
        kept any more, and of several streams what came meanwhile, is told as a `Gap`.

        Args:
            stream: This one alone; None: all of the model.
            prefix: Those alone whose id begins with it.
            since: Of one stream, the last step that is known; what came after it is told first.
            inputs: Tell the inputs, too.

        Raises:
            ClientError: The service refuses.
        """
        found: Iterator[Event | Gap] = self._client.watch(self.name, stream, prefix, since, inputs=inputs)
        return found


class Stream:
    """A stream's handle: it remembers where the stream stands, and sends that with each step.

    The first call reads it from the service. From then on the handle goes on from its own last answer: if anybody
    else moves the stream, the next call is refused with `state_changed`, and `resume` reads it anew. After an error
    that leaves it open whether the step was applied, make the same call again: it is applied at most once.

    Attributes:
        name: The stream's id.
    """

    def __init__(self, model: Model, client: Client, exchanges: StreamOps, place: StreamCursor) -> None:
        """Use `Model.stream`."""
        self._model = model
        self.name = place.stream
        self._place = place
        self._lock = threading.Lock()
        self._client = client
        self._exchanges = exchanges

    def step(self, x: Inputs) -> StepResult:
        """Move the stream by one timestep and return the prediction.

        Args:
            x: Shape `(*row)` per input; types are converted to the model's where no value is lost.

        Raises:
            ClientError: It was refused, or got no answer in time.
        """
        return self._run(self._exchanges.step(self._place, x))

    def steps(self, xs: Inputs, returns: ReturnMode = "all") -> StepResult:
        """Move the stream by a chunk of timesteps, all or nothing.

        Args:
            xs: Shape `(T, *row)` per input.
            returns: Which predictions to answer: `all`, the `last`, or `none`.

        Raises:
            ClientError: It was refused, or got no answer in time.
        """
        return self._run(self._exchanges.step(self._place, xs, returns))

    def prime(self, xs: Inputs) -> StepResult:
        """Give the stream its history, without predictions: `steps` with `none`."""
        return self.steps(xs, "none")

    def replay(
        self, rows: Any, *, columns: Sequence[str] | None = None, progress: bool = False
    ) -> Iterator[StepResult]:
        """Step through recorded timesteps, and give each prediction as it comes.

        Args:
            rows: A pandas DataFrame, a timestep a row, or any iterable of what `step` takes.
            columns: Of a DataFrame, in the order of the model's features; None: all, as they stand.
            progress: Draw a bar on standard error.

        Raises:
            ClientError: As for `step`.
        """
        timesteps = timesteps_of(rows, columns)
        for x in with_bar(timesteps, self.name) if progress else timesteps:
            yield self.step(x)

    def peek(self, x: Inputs, *, chunk: bool = False) -> StepResult:
        """Return what a step, or a chunk, would be answered from where the stream stands now; nothing moves.

        Raises:
            ClientError: It was refused, or got no answer in time.
        """
        return self._client.run(self._exchanges.peek(self._place, x, chunk=chunk))

    def rollout(self, horizon: int, x: Inputs | None = None, *, commit: bool = False, **options: Any) -> Rollout:
        """Return where the stream goes by its own predictions.

        Args:
            horizon: Timesteps to go.
            x: The first input; None: made of the stream's last prediction.
            commit: Go there.
            options: `feedback`, `samples`, `seed`, `temperature`, `top_k`, `top_p`, as docs/operations.md says.

        Raises:
            ClientError: As for `step`.
        """
        return self._run(self._exchanges.rollout(self._place, horizon, x, options, commit=commit))

    def fork(self, to: str, *, snapshot: str | None = None) -> Stream:
        """Begin another stream as this one is now, or as its snapshot is, and return its handle.

        Raises:
            ClientError: `stream_exists`, or as for `step`.
        """
        other = self._model.stream(to)
        other._run(self._exchanges.fork(self._place, other._place, snapshot))
        return other

    def snapshots(self) -> list[Snapshot]:
        """List the stream's snapshots."""
        return self._client.run(self._exchanges.snapshots(self._place))

    def take_snapshot(self, name: str) -> StepResult:
        """Copy the stream, as it is now, under a name; a snapshot of that name is replaced."""
        return self._client.run(self._exchanges.take_snapshot(self._place, name))

    def forget_snapshot(self, name: str) -> None:
        """Forget a snapshot."""
        self._client.run(self._exchanges.forget_snapshot(self._place, name))

    def state(self) -> State:
        """Return the stream's state."""
        return self._client.run(self._exchanges.state(self._place))

    def put_state(self, state: State) -> StepResult:
        """Let the stream go on from a state, which may be of another service's stream.

        Raises:
            ClientError: `bad_input`, `non_finite`, `model_changed`, or as for `step`.
        """
        return self._run(self._exchanges.put_state(self._place, state))

    def watch(self, *, since: int | None = None, inputs: bool = False) -> Iterator[Event | Gap]:
        """Follow the stream; as `Model.watch`."""
        return self._model.watch(self.name, since=since, inputs=inputs)

    def reset(self, to: str | None = None) -> StepResult:
        """Bring the stream back to its initial state, from where this handle stands; or to a snapshot.

        Args:
            to: The snapshot's name.

        Raises:
            ClientError: As for `step`; `snapshot_not_found`.
        """
        if to is not None:
            return self._run(self._exchanges.reset_to(self._place, to))
        return self._run(self._exchanges.reset(self._place))

    def resume(self) -> int:
        """Read where the stream stands, go on from there, and return its step; 0 where there is no such stream.

        Raises:
            ClientError: It was refused, or got no answer in time.
        """
        return self._run(self._exchanges.resume(self._place))

    def status(self) -> Status:
        """Return where the stream stands. The handle does not go there; `resume` does.

        Raises:
            ClientError: `stream_not_found`, or as for `step`.
        """
        return self._client.run(self._exchanges.status(self._place))

    def delete(self) -> None:
        """Forget the stream, wherever it stands; the next step begins a new one.

        Raises:
            ClientError: It was refused, or got no answer in time.
        """
        self._run(self._exchanges.delete(self._place))

    def _run(self, exchange: Exchange[T]) -> T:
        """Carry an exchange that moves this handle, once its other calls are done."""
        with _turns([self], self._exchanges.timeout):
            return self._client.run(exchange)


@contextmanager
def _turns(streams: Sequence[Stream], timeout: float) -> Iterator[None]:
    """Hold the locks of streams.

    Raises:
        ClientError: `no_answer`: others held one of them until the time was over.
    """
    until = time.monotonic() + timeout
    with ExitStack() as held:
        for stream in streams:
            if not stream._lock.acquire(timeout=max(0.0, until - time.monotonic())):
                raise busy(stream.name, timeout)
            held.callback(stream._lock.release)
        yield
