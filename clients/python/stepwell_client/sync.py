# Written from aio.py by `python -m scripts.unasync`: change that file, and run the script.

"""`Client`: the client for scripts and threads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Self, TypeVar

from websockets.exceptions import WebSocketException

from stepwell_client import http_transport, memory
from stepwell_client.errors import ClientError
from stepwell_client.handles import KEEP_STREAMS, Handles
from stepwell_client.memory import StrPath
from stepwell_client.on_threads import Http, Lock, OpenWatches, acquire, run_blocking
from stepwell_client.protocol.decoding import ModelInfo, NoReply, RawReply
from stepwell_client.protocol.exchange import Exchange, drive
from stepwell_client.protocol.inputs import Inputs, Source
from stepwell_client.protocol.requests import ClientRequest, StreamCursor
from stepwell_client.protocol.resend_buffer import KEEP_BYTES, ResendBuffer
from stepwell_client.protocol.rollout_events import RolloutEvents, timesteps_of
from stepwell_client.protocol.steps import OnResend, busy
from stepwell_client.protocol.stream_ops import StreamOps
from stepwell_client.results import (
    Event,
    Gap,
    PackedState,
    Rollout,
    RolloutTimestep,
    RunResult,
    Snapshot,
    State,
    Status,
    StepResult,
)
from stepwell_client.tables import Columns, columns_by_input, rows_of_table, table_of, with_bar
from stepwell_client.watch import WatchCursor
from stepwell_client.websockets import open_socket
from stepwell_client.wire.outcomes import ReturnMode

T = TypeVar("T")


class Client:
    """A connection to a service. Threads may share it.

    Attributes:
        url: The address. For an engine in this process, other clients of it are `Client(client.url)`.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = 60.0,
        *,
        models: StrPath | Sequence[StrPath] | None = None,
        settings: Mapping[str, Any] | None = None,
        keep_bytes: int = KEEP_BYTES,
        keep_streams: int = KEEP_STREAMS,
        on_resend: OnResend | None = None,
    ) -> None:
        """Create the client; nothing is sent yet.

        Args:
            url: The service's address, `http://HOST:PORT`; or `:memory:`, an engine in this process with a private
                store, which starts here (in about a second) and ends when the client is closed.
            key: API key, if the service requires one.
            timeout: Seconds that one call may take, including its retries and its wait for other calls of the stream.
            models: For `:memory:`, one or more folders with models; None: `models`.
            settings: For `:memory:`, settings of the service by name, for example `{"history": "256"}`.
            keep_bytes: Memory for sent requests, which are resent if the store loses them; 0 keeps none.
            keep_streams: Unreferenced stream handles that a model keeps, the most recently used ones. A handle that
                was evicted is created again by reading the stream's position from the service.
            on_resend: Called while requests are resent, with the stream's id, the number of requests already
                resent and the number of requests to resend.

        Raises:
            ClientError: `bad_url`; `bad_request`: no header can have the key.
            StepwellError: The engine in this process does not start.
        """
        self._engine = memory.start(url, models, settings)
        self.url = url if self._engine is None else self._engine.url
        self._http = Http(self.url, key)
        self._timeout = timeout
        self._keep_streams = keep_streams
        self._resend_buffer = ResendBuffer(keep_bytes) if keep_bytes > 0 else None
        self._on_resend = on_resend
        self._watches = OpenWatches()

    def model(self, name: str) -> Model:
        """Return a model by name.

        The returned object holds the positions of its streams, so two objects of one model are two independent writers.

        Raises:
            ClientError: `bad_request`: the name is not a valid model name.
        """
        operations = StreamOps(name, self._timeout, resend_buffer=self._resend_buffer, on_resend=self._on_resend)
        return Model(self, name, operations, self._keep_streams)

    def close(self) -> None:
        """Close all connections, including those of active watches, and end the engine in this process."""
        self._watches.close()
        self._http.close()
        if self._engine is not None:
            run_blocking(self._engine.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, exchange: Exchange[T]) -> T:
        """Send the requests of an exchange and return its result."""
        return drive(exchange, self._send)

    def watch(
        self, model: str, stream: str | None, prefix: str, since: int | None, *, inputs: bool
    ) -> Iterator[Event | Gap]:
        """Yield commits; use `Model.watch`."""
        address = self._http.feed_address("/v1/watch")
        return _follow(WatchCursor(address, model, stream, prefix, since, inputs=inputs), self._watches)

    def rollout_timesteps(self, events: RolloutEvents) -> Iterator[RolloutTimestep]:
        """Yield the timesteps of a rollout; use `Stream.rollout_timesteps`."""
        while not events.is_done:
            self._pause(events.request)
            with closing(self._http.lines(events.request)) as lines:
                for line in lines:
                    timestep = events.receive(line)
                    if timestep is not None:
                        yield timestep
            events.on_end()

    def _send(self, request: ClientRequest) -> RawReply | NoReply:
        self._pause(request)
        return self._http.send(request)

    def _pause(self, request: ClientRequest) -> None:
        """Wait until a request is to be sent.

        Raises:
            ClientError: `closed`.
        """
        if request.wait:
            self._watches.pause(request.wait)
        if self._watches.closed.is_set():
            raise http_transport.client_closed()


class Model:
    """A model of a service, with the positions of its streams. Threads may share it."""

    def __init__(self, client: Client, name: str, operations: StreamOps, keep_streams: int) -> None:
        """Use `Client.model`."""
        self.name = name
        self._client = client
        self._operations = operations
        self._handles = Handles(lambda cursor: Stream(self, client, operations, cursor), keep_streams)

    def stream(self, name: str) -> Stream:
        """Return the handle of a stream; the same id returns the same handle.

        Raises:
            ClientError: `bad_request`: the id is not a valid stream id.
        """
        return self._handles.get(name)

    def describe(self) -> ModelInfo:
        """Return the model's inputs and outputs.

        Raises:
            ClientError: `model_not_found`, or no response arrived in time.
        """
        return self._client.run(self._operations.describe())

    def step_many(
        self, inputs: Mapping[str, Inputs], *, sources: Mapping[str, Source] | None = None
    ) -> dict[str, StepResult | ClientError]:
        """Step many streams by one timestep each, in one request; in two if only some of the streams exist.

        Args:
            inputs: The inputs of each stream by its id; shape `(*row)` per input.
            sources: The source of each stream's timestep by the stream's id, as for `Stream.step`.

        Returns:
            A result per stream, or its error; a failed stream does not affect the others. `created` is always False.

        Raises:
            ClientError: No stream was stepped, or it is unknown which streams were: repeat the call for all of them.
        """
        streams, invalid = self._handles.all_of(inputs)  # one lock order for all calls, so no deadlock
        exchange = self._operations.step_many([stream._cursor for stream in streams], inputs, sources)
        with _locked(streams, self._operations.timeout):
            results = self._client.run(exchange)
        return {name: (invalid | results)[name] for name in inputs}

    def run(self, x: Inputs, state: str | None = None) -> RunResult:
        """Run one timestep whose state is in the call; the service stores nothing.

        Args:
            x: Shape `(*row)` per input.
            state: The packed state: that of an earlier result, or of `Stream.packed_state`; None is the model's
                initial state.

        Raises:
            ClientError: `bad_request`: the state cannot be read; `model_changed`: another model wrote it; or as for
                `Stream.step`.
        """
        return self._client.run(self._operations.run(x, state))

    def run_many(self, x: Inputs, states: Sequence[str | None]) -> list[RunResult | ClientError]:
        """Run one timestep of each of several states, in one request.

        Args:
            x: Shape `(N, *row)` per input.
            states: N packed states, as for `run`.

        Returns:
            A result per row, or its error; a failed row does not affect the others.

        Raises:
            ClientError: No row was run.
        """
        return self._client.run(self._operations.run_many(x, states))

    def watch(
        self, stream: str | None = None, *, prefix: str = "", since: int | None = None, inputs: bool = False
    ) -> Iterator[Event | Gap]:
        """Yield predictions as they are committed, from any sender, until the client is closed.

        A lost connection is opened again. A watch of one stream then continues after the last event it yielded; steps
        that the service no longer keeps are reported as a `Gap`. A watch of several streams reports every
        reconnection as a `Gap`.

        Args:
            stream: Watch only this stream; None watches all streams of the model.
            prefix: Watch only streams whose id begins with it.
            since: With `stream`, the last step already known; later steps are yielded first.
            inputs: Include the inputs in each event.

        Raises:
            ClientError: The service rejected the watch.
        """
        return self._client.watch(self.name, stream, prefix, since, inputs=inputs)


class Stream:
    """A stream's handle, which keeps the stream's position and sends it with each step.

    The first call reads the position from the service; later calls use the handle's own last result. If another
    writer changes or creates the stream, the next call fails with `state_changed` or `stream_exists`, and `resume`
    reads the position again. After an error with an unknown outcome, repeat the same call: it is applied at most once.
    Concurrent calls run one after the other.

    Attributes:
        name: The stream's id.
    """

    def __init__(self, model: Model, client: Client, operations: StreamOps, cursor: StreamCursor) -> None:
        """Use `Model.stream`."""
        self._model = model
        self.name = cursor.stream
        self._cursor = cursor
        self._lock = Lock()
        self._forked: Stream | None = None  # what it is a fork of, until that is done: its position identifies the call
        self._client = client
        self._operations = operations

    def step(self, x: Inputs, *, source: Source | None = None) -> StepResult:
        """Step the stream by one timestep and return the prediction.

        Args:
            x: Shape `(*row)` per input; converted to the model's dtypes if that loses no value.
            source: The id of the log that the timestep was read from, and its position in it. A timestep at or before
                the stream's position of that log is not applied again, whoever sends it, and however late.

        Raises:
            ClientError: The step was rejected, or no response arrived in time.
        """
        return self._run(self._operations.step(self._cursor, x, source=source))

    def steps(self, xs: Inputs, returns: ReturnMode = "all", *, source: Source | None = None) -> StepResult:
        """Step the stream by a chunk of timesteps; all are applied, or none.

        Args:
            xs: Shape `(T, *row)` per input.
            returns: Which predictions to return: `all`, the `last`, or `none`.
            source: As for `step`, with a position for each timestep. Those that were applied before are skipped; their
                outputs are returned if the stream still has them.

        Raises:
            ClientError: The chunk was rejected, or no response arrived in time.
        """
        return self._run(self._operations.step(self._cursor, xs, returns, source=source))

    def prime(self, xs: Inputs) -> StepResult:
        """Feed the stream past timesteps without returning predictions: `steps` with `none`."""
        return self.steps(xs, "none")

    def replay(self, rows: Any, *, columns: Columns | None = None, progress: bool = False) -> Iterator[StepResult]:
        """Step through recorded timesteps and yield each prediction.

        Args:
            rows: A pandas DataFrame with one timestep per row, or an iterable of inputs as `step` accepts them.
            columns: The DataFrame's columns in the order of the input's numbers, or a dict of them by input; None:
                by their names, which are the input's labels (or `NAME` of one number, `NAME[0]`, `NAME[1]`, ..).
            progress: Draw a progress bar on standard error.

        Raises:
            ClientError: As for `step`; `bad_input`: the columns of an input are not known.
        """
        timesteps = self.timesteps_of(rows, columns=columns)
        for n, x in enumerate(with_bar(timesteps, self.name) if progress else timesteps):
            try:
                result = self.step(x)
            except ClientError as exc:
                exc.add_note(f"This is row {n} of the recording, counted from 0.")
                raise
            yield result

    def timesteps_of(self, rows: Any, *, columns: Columns | None = None) -> Iterable[Any]:
        """Return what `replay` steps: an array per input for each row of a DataFrame, any other iterable as it is."""
        table = table_of(rows)
        if table is None:
            return rows  # type: ignore[no-any-return]  # each element is checked when it is sent
        model = self._model.describe()
        return rows_of_table(table, columns_by_input(model.inputs, list(table.columns), columns), model.inputs)

    def peek(self, x: Inputs, *, chunk: bool = False) -> StepResult:
        """Return the result that a step (or a chunk) would have from the current state; nothing is committed.

        Raises:
            ClientError: The peek was rejected, or no response arrived in time.
        """
        return self._client.run(self._operations.peek(self._cursor, x, chunk=chunk))

    def rollout(self, horizon: int, x: Inputs | None = None, *, commit: bool = False, **options: Any) -> Rollout:
        """Run the stream by its own predictions and return them.

        Args:
            horizon: Timesteps to predict.
            x: The first input; None computes it from the stream's last prediction.
            commit: Commit the predicted timesteps to the stream.
            options: `feedback`, `samples`, `seed`, `temperature`, `top_k`, `top_p`; see the page
                "What else a stream can do" of the documentation.

        Raises:
            ClientError: As for `step`.
        """
        return self._run(self._operations.rollout(self._cursor, horizon, x, options, commit=commit))

    def rollout_timesteps(
        self, horizon: int, x: Inputs | None = None, *, commit: bool = False, **options: Any
    ) -> Iterator[RolloutTimestep]:
        """Run the stream by its own predictions, and yield each timestep as it is made.

        With `commit`, all timesteps are computed and committed before the first is yielded. Without it, leaving the
        loop ends the run.

        Args:
            horizon: Timesteps to predict.
            x: As for `rollout`, like `options`.
            commit: Commit the predicted timesteps to the stream.
            options: As for `rollout`.

        Raises:
            ClientError: As for `rollout`, also after some timesteps.
        """
        if commit:
            rollout = self.rollout(horizon, x, commit=True, **options)
            for timestep in timesteps_of(rollout, horizon, samples="samples" in options):
                yield timestep
            return
        events = self._client.run(self._operations.rollout_events(self._cursor, horizon, x, options))
        for timestep in self._client.rollout_timesteps(events):
            yield timestep

    def fork(self, to: str, *, snapshot: str | None = None) -> Stream:
        """Create another stream as a copy of this one, or of a snapshot of it, and return its handle.

        Raises:
            ClientError: `stream_exists`, or as for `step`.
        """
        other = self._model.stream(to)
        other._forked = self
        other._run(self._operations.fork(self._cursor, other._cursor, snapshot))
        other._forked = None
        return other

    def snapshots(self) -> list[Snapshot]:
        """List the stream's snapshots."""
        return self._client.run(self._operations.snapshots(self._cursor))

    def take_snapshot(self, name: str) -> StepResult:
        """Save a named copy of the stream's current state; an existing snapshot of that name is replaced."""
        return self._run(self._operations.take_snapshot(self._cursor, name))

    def forget_snapshot(self, name: str) -> None:
        """Delete a snapshot."""
        self._run(self._operations.forget_snapshot(self._cursor, name))

    def state(self) -> State:
        """Return the stream's state."""
        return self._client.run(self._operations.state(self._cursor))

    def packed_state(self) -> PackedState:
        """Return the stream's state as one text, for `put_state`, for `Model.run` or for a model on a device."""
        return self._client.run(self._operations.packed_state(self._cursor))

    def put_state(self, state: State | PackedState) -> StepResult:
        """Replace the stream's state, possibly by one that another service's stream had, or a device.

        Raises:
            ClientError: `bad_input`, `non_finite`, `non_finite_state`, `model_changed`, or as for `step`.
        """
        return self._run(self._operations.put_state(self._cursor, state))

    def watch(self, *, since: int | None = None, inputs: bool = False) -> Iterator[Event | Gap]:
        """Yield the stream's predictions; as `Model.watch`."""
        return self._model.watch(self.name, since=since, inputs=inputs)

    def reset(self, to: str | None = None) -> StepResult:
        """Reset the stream to its initial state or to a snapshot, if its position is still the handle's.

        Args:
            to: The snapshot's name; None resets to the initial state.

        Raises:
            ClientError: As for `step`; `snapshot_not_found`.
        """
        return self._run(self._operations.reset(self._cursor, to))

    def resume(self) -> int:
        """Read the stream's position from the service, continue from it, and return the step; 0 without a stream.

        Raises:
            ClientError: The request was rejected, or no response arrived in time.
        """
        return self._run(self._operations.resume(self._cursor))

    def status(self) -> Status:
        """Return the stream's status. The handle keeps its own position; `resume` replaces it.

        Raises:
            ClientError: `stream_not_found`, or as for `step`.
        """
        return self._client.run(self._operations.status(self._cursor))

    def delete(self) -> None:
        """Delete the stream, whatever its position; the next step creates a new one.

        Raises:
            ClientError: The request was rejected, or no response arrived in time.
        """
        self._run(self._operations.delete(self._cursor))

    def _run(self, exchange: Exchange[T]) -> T:
        """Run an exchange that changes this handle, after the handle's earlier calls."""
        with _locked([self], self._operations.timeout):
            return self._client.run(exchange)


@contextmanager
def _locked(streams: Sequence[Stream], timeout: float) -> Iterator[None]:
    """Hold the locks of streams.

    Raises:
        ClientError: `no_answer`: a lock was not acquired within the timeout.
    """
    deadline = time.monotonic() + timeout
    with ExitStack() as acquired:
        for stream in streams:
            if not acquire(stream._lock, deadline - time.monotonic()):
                raise busy(stream.name, timeout)
            acquired.callback(stream._lock.release)
        try:
            yield
        finally:
            for stream in streams:
                if stream._cursor.in_doubt:
                    stream._model.stream(stream.name)  # is kept, also if it was evicted before


def _follow(watch: WatchCursor, open_watches: OpenWatches) -> Iterator[Event | Gap]:
    """Yield a watch's events and gaps, reconnecting as needed, until the client is closed."""
    is_back = False
    closed = open_watches.closed
    while not closed.is_set():
        try:
            with open_socket(watch.address, **watch.options) as socket, open_watches.register(socket):
                if closed.is_set():  # during the handshake
                    return
                socket.send(watch.subscribe_message())
                for message in socket:
                    event = watch.on_message(message)
                    if event is None and is_back:
                        event = watch.gap()
                    if event is not None:
                        yield event
            open_watches.pause(watch.pause())
        except (OSError, TimeoutError, WebSocketException) as exc:
            open_watches.pause(watch.pause(exc))
        is_back = True
