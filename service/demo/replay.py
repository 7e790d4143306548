"""Replay recordings as live streams over one WebSocket, and check every prediction."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Self

import httpx
import msgspec
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from model_export.errors import StepwellError
from service.demo.recordings import MODEL, Recordings
from service.demo.report import Report

_JSON = Subprotocol("stepwell.json")
_ANSWER_WITHIN_S = 15.0
_PROGRESS_EVERY_S = 1.0
_POLL = "Look at the service's log."
_NEXT_RECORDING = 11  # the recordings are sorted by activity: 11 on is another one, and in the end all were played


class DemoError(StepwellError):
    """The service that the demo talks to is not there, or refuses."""

    code = "demo_failed"


async def replay(
    base_url: str,
    *,
    seconds: float | None,
    speed: float = 1.0,
    on_progress: Callable[[Report], None] | None = None,
    recordings: Recordings | None = None,
) -> Report:
    """Replay each recording as a stream of its own, at the pace it was recorded, again and again.

    Each stream sends a timestep, and the next one when that is answered and due. At the end of a recording it is
    reset and goes on with another one.

    Args:
        base_url: Where the service is, `http://host:port`.
        seconds: How long; None until cancelled.
        speed: 2 is twice as fast as recorded; `math.inf` does not wait.
        on_progress: Called about once a second with the report as it stands.
        recordings: What to replay; by default the demo's own.

    Returns:
        The report; `report.ok` is whether every prediction was within the tolerance that the model states.

    Raises:
        DemoError: The service does not answer, refuses a timestep, or does not have the model.
    """
    recordings = recordings or Recordings.load()
    async with httpx.AsyncClient(base_url=base_url, timeout=_ANSWER_WITHIN_S, trust_env=False) as http:
        model = await _call(http, "GET", f"/v1/models/{MODEL}")
        parity = model["parity"]
        report = Report(streams=len(recordings), atol=parity["atol"], rtol=parity["rtol"])
        start = perf_counter()
        until = start + (math.inf if seconds is None else seconds)
        async with _DemoFeed.open(base_url) as feed:
            stage = _ReplaySession(
                recordings, report, feed, http, model["inputs"][0]["name"], model["outputs"][0]["name"]
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    players = [tasks.create_task(stage.play(i, speed, until=until)) for i in range(len(recordings))]
                    while not all(player.done() for player in players):
                        await asyncio.wait(players, timeout=_PROGRESS_EVERY_S, return_when=asyncio.FIRST_EXCEPTION)
                        report.seconds = perf_counter() - start
                        if on_progress is not None:
                            on_progress(report)
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from None  # the first says it; the others fell with it
    return report


@dataclass(frozen=True, slots=True)
class _ReplaySession:
    """What the streams of a replay share."""

    recordings: Recordings
    report: Report
    feed: _DemoFeed
    http: httpx.AsyncClient
    input: str
    output: str

    async def play(self, number: int, speed: float, *, until: float) -> None:
        """Play one recording after the other as one stream, until a moment of `perf_counter`."""
        stream = f"watch-{number + 1:02d}"
        pause = 1 / (self.recordings.rate_hz * speed)
        due = perf_counter() + pause * number / len(self.recordings)  # the streams take turns
        for turn in itertools.count():
            recording = (number + turn) * _NEXT_RECORDING % len(self.recordings)
            await _call(self.http, "POST", f"/v1/models/{MODEL}/streams/{stream}/reset")
            for timestep in range(self.recordings.x.shape[1]):
                await asyncio.sleep(max(0.0, due - perf_counter()))
                if perf_counter() >= until:
                    return
                await self._step(stream, recording, timestep)
                due = max(due + pause, perf_counter() - pause)  # late by more than one: go on from here

    async def _step(self, stream: str, recording: int, timestep: int) -> None:
        inputs = {self.input: self.recordings.x[recording, timestep].tolist()}
        sent = perf_counter()
        answer = await self.feed.step(stream, inputs, seq=timestep + 1)
        latency = perf_counter() - sent
        got = np.asarray(answer["outputs"][self.output], np.float32)
        self.report.compare(got, self.recordings.expected[recording, timestep], latency=latency)
        if timestep == self.recordings.x.shape[1] - 1:
            self.report.finish(right=int(got.argmax()) == int(self.recordings.labels[recording]))


class _DemoFeed:
    """The WebSocket that carries all streams; an answer finds its question by the id."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, base_url: str) -> AsyncIterator[Self]:
        """Connect; closes at the end."""
        url = f"{base_url.rstrip('/').replace('http', 'ws', 1)}/v1/models/{MODEL}/feed"
        try:
            socket = await connect(url, subprotocols=[_JSON], proxy=None)
        except (OSError, InvalidHandshake) as exc:
            raise DemoError(f"{url} cannot be opened: {exc}.", fix=_POLL) from exc
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
        """Send one timestep and return its answer.

        Raises:
            DemoError: It was refused, or not answered in time, or the connection is closed.
        """
        number = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        message = {"stream": stream, "inputs": inputs, "seq": seq, "id": number}
        try:
            await self._socket.send(msgspec.json.encode(message), text=True)
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                return await answer
        except TimeoutError as exc:
            what = f"Step {seq} of {stream} was not answered within {_ANSWER_WITHIN_S:g} s."
            raise DemoError(what, fix=_POLL) from exc
        except ConnectionClosed as exc:
            raise self._closed() from exc
        finally:
            self._waiting.pop(number, None)

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for text in self._socket:
                self._take(msgspec.json.decode(text))
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(self._closed())
                answer.exception()  # its player may have ended already, and asyncio would log that nobody heard

    def _take(self, message: dict[str, Any]) -> None:
        answer = self._waiting.get(message.get("id", 0))
        if answer is None or answer.done():
            return
        if error := message.get("error"):
            answer.set_exception(DemoError(f"The service refused a timestep: {error.get('detail', error)}", fix=_POLL))
        else:
            answer.set_result(message)

    def _closed(self) -> DemoError:
        said = f"code {self._socket.close_code} {self._socket.close_reason or ''}".strip()
        return DemoError(f"The service closed the connection ({said}).", fix=_POLL)


async def _call(http: httpx.AsyncClient, method: str, path: str) -> Any:
    """Return the body of a good answer."""
    try:
        answer = await http.request(method, path)
    except httpx.TransportError as exc:
        raise DemoError(f"{http.base_url} does not answer: {exc!r}.", fix="Start it first: stepwell serve.") from exc
    if not answer.is_success:
        raise DemoError(f"{method} {path} answered {answer.status_code}: {answer.text}", fix=_POLL)
    return answer.json()
