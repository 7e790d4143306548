"""Replays recordings as live streams over one WebSocket and checks every prediction."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Self

import httpx2
import msgspec
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from model_export.errors import StepwellError
from service.demo.recordings import MODEL, Recordings
from service.demo.report import Report

_JSON = Subprotocol("stepwell.json")
_TIMEOUT_S = 15.0
_PROGRESS_EVERY_S = 1.0
_CHECK_LOG = "Check the service's log."
_NEXT_RECORDING = 11  # stride; the recordings are sorted by activity, so it changes the activity and visits all of them


class DemoError(StepwellError):
    """The demo's service does not respond, or rejected a request."""

    code = "demo_failed"


async def replay(
    base_url: str,
    *,
    seconds: float | None,
    speed: float = 1.0,
    on_progress: Callable[[Report], None] | None = None,
    recordings: Recordings | None = None,
) -> Report:
    """Replay recordings in a loop, one stream per recording, at the recorded rate.

    Each stream sends its next timestep once the response to the last one has arrived and the timestep is due. At the
    end of a recording the stream is reset and continues with another recording.

    Args:
        base_url: The service's address, `http://host:port`.
        seconds: Duration of the replay; None runs until cancelled.
        speed: Speed relative to the recording; `math.inf` sends without waiting.
        on_progress: Called about once a second with the current report.
        recordings: The recordings to replay; by default the demo's own.

    Returns:
        The report; `report.ok` is True if every prediction was within the model's stated tolerance.

    Raises:
        DemoError: The service does not respond, rejects a timestep, or does not have the model.
    """
    recordings = recordings or Recordings.load()
    async with httpx2.AsyncClient(base_url=base_url, timeout=_TIMEOUT_S, trust_env=False) as http:
        model = await _call(http, "GET", f"/v1/models/{MODEL}")
        parity = model["parity"]
        report = Report(streams=len(recordings), atol=parity["atol"], rtol=parity["rtol"])
        start = perf_counter()
        end = start + (math.inf if seconds is None else seconds)
        async with _DemoFeed.open(base_url) as feed:
            session = _ReplaySession(
                recordings, report, feed, http, model["inputs"][0]["name"], model["outputs"][0]["name"]
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    players = [tasks.create_task(session.play(i, speed, end=end)) for i in range(len(recordings))]
                    while not all(player.done() for player in players):
                        await asyncio.wait(players, timeout=_PROGRESS_EVERY_S, return_when=asyncio.FIRST_EXCEPTION)
                        report.seconds = perf_counter() - start
                        if on_progress is not None:
                            on_progress(report)
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None  # the first is the cause; the others follow from it
    return report


@dataclass(frozen=True, slots=True)
class _ReplaySession:
    """The state that all streams of a replay share."""

    recordings: Recordings
    report: Report
    feed: _DemoFeed
    http: httpx2.AsyncClient
    input: str
    output: str

    async def play(self, number: int, speed: float, *, end: float) -> None:
        """Replay one recording after the other as one stream, until a time of `perf_counter`."""
        stream = f"watch-{number + 1:02d}"
        pause = 1 / (self.recordings.rate_hz * speed)
        due = perf_counter() + pause * number / len(self.recordings)  # spreads the streams evenly
        for count in itertools.count():
            recording = (number + count) * _NEXT_RECORDING % len(self.recordings)
            await _call(self.http, "POST", f"/v1/models/{MODEL}/streams/{stream}/reset")
            for timestep in range(self.recordings.x.shape[1]):
                await asyncio.sleep(max(0.0, due - perf_counter()))
                if perf_counter() >= end:
                    return
                await self._step(stream, recording, timestep)
                due = max(due + pause, perf_counter() - pause)  # more than one timestep late: continue from now

    async def _step(self, stream: str, recording: int, timestep: int) -> None:
        inputs = {self.input: self.recordings.x[recording, timestep].tolist()}
        sent = perf_counter()
        reply = await self.feed.step(stream, inputs, seq=timestep + 1)
        latency = perf_counter() - sent
        prediction = np.asarray(reply["outputs"][self.output], np.float32)
        self.report.compare(prediction, self.recordings.expected[recording, timestep], latency=latency)
        if timestep == self.recordings.x.shape[1] - 1:
            self.report.finish(right=int(np.argmax(prediction)) == int(self.recordings.labels[recording]))


class _DemoFeed:
    """The WebSocket of all streams; replies are matched to timesteps by `id`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, base_url: str) -> AsyncIterator[Self]:
        """Connect, and close the connection after the block."""
        url = f"{base_url.rstrip('/').replace('http', 'ws', 1)}/v1/models/{MODEL}/feed"
        try:
            socket = await connect(url, subprotocols=[_JSON], proxy=None)
        except (OSError, InvalidHandshake) as exc:
            raise DemoError(f"{url} cannot be opened: {exc}.", fix=_CHECK_LOG) from exc
        async with socket:
            feed = cls(socket)
            reader = asyncio.create_task(feed._read())
            try:
                yield feed
            finally:
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reader

    async def step(self, stream: str, inputs: dict[str, Any], *, seq: int) -> dict[str, Any]:
        """Send one timestep and return the reply.

        Raises:
            DemoError: The timestep was rejected, no reply arrived in time, or the connection is closed.
        """
        number = next(self._ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        message = {"stream": stream, "inputs": inputs, "seq": seq, "id": number}
        try:
            await self._socket.send(msgspec.json.encode(message), text=True)
            async with asyncio.timeout(_TIMEOUT_S):
                return await future
        except TimeoutError as exc:
            problem = f"Step {seq} of stream {stream} got no reply within {_TIMEOUT_S:g} s."
            raise DemoError(problem, fix=_CHECK_LOG) from exc
        except ConnectionClosed as exc:
            raise self._closed() from exc
        finally:
            self._pending.pop(number, None)

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for text in self._socket:
                self._on_message(msgspec.json.decode(text))
        for future in self._pending.values():
            if not future.done():
                future.set_exception(self._closed())
                future.exception()  # marks it as retrieved: without a waiting player asyncio would log it

    def _on_message(self, message: dict[str, Any]) -> None:
        future = self._pending.get(message.get("id", 0))
        if future is None or future.done():
            return
        if error := message.get("error"):
            problem = f"The service rejected a timestep: {error.get('detail', error)}"
            future.set_exception(DemoError(problem, fix=_CHECK_LOG))
        else:
            future.set_result(message)

    def _closed(self) -> DemoError:
        reason = f"code {self._socket.close_code} {self._socket.close_reason or ''}".strip()
        return DemoError(f"The service closed the connection ({reason}).", fix=_CHECK_LOG)


async def _call(http: httpx2.AsyncClient, method: str, path: str) -> Any:
    """Return the body of a successful response."""
    try:
        response = await http.request(method, path)
    except httpx2.TransportError as exc:
        raise DemoError(
            f"{http.base_url} does not respond: {exc!r}.", fix="Start the service first: stepwell serve."
        ) from exc
    if not response.is_success:
        raise DemoError(f"{method} {path} failed with {response.status_code}: {response.text}", fix=_CHECK_LOG)
    return response.json()
