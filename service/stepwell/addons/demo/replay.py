"""Replays recordings as live streams over one WebSocket and checks every prediction."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from stepwell.addons.demo.recordings import MODEL, MODELS, Recordings
from stepwell.addons.demo.report import Report
from stepwell_client import AsyncClient, AsyncStream, Feed
from stepwell_export.runtime.step_model import StepModel

_TIMEOUT_S = 15.0
_PROGRESS_EVERY_S = 1.0
_NEXT_RECORDING = 11  # stride; the recordings are sorted by activity, so it changes the activity and visits all of them


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
        ClientError: The service does not respond, rejects a timestep, or does not have the model.
    """
    recordings = recordings or Recordings.load()
    verified = StepModel(MODELS / f"{MODEL}.onnx").manifest.verified
    assert verified is not None
    report = Report(streams=len(recordings), atol=verified.atol, rtol=verified.rtol)
    async with AsyncClient(base_url, timeout=_TIMEOUT_S) as client:
        model = client.model(MODEL)
        streams = [model.stream(f"watch-{number + 1:02d}") for number in range(len(recordings))]
        await streams[0].peek(recordings.x[0, 0])  # the client reads the model's description once
        await asyncio.gather(*(stream.reset() for stream in streams))
        start = perf_counter()
        end = start + (math.inf if seconds is None else seconds)
        async with model.feed() as feed:
            session = _ReplaySession(recordings, report, streams, feed)
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
    streams: list[AsyncStream]
    feed: Feed

    async def play(self, number: int, speed: float, *, end: float) -> None:
        """Replay one recording after the other as one stream, until a time of `perf_counter`."""
        stream = self.streams[number]
        pause = 1 / (self.recordings.rate_hz * speed)
        due = perf_counter() + pause * number / len(self.recordings)  # spreads the streams evenly
        for count in itertools.count():
            recording = (number + count) * _NEXT_RECORDING % len(self.recordings)
            if count:
                await stream.reset()
            for timestep in range(self.recordings.x.shape[1]):
                await asyncio.sleep(max(0.0, due - perf_counter()))
                if perf_counter() >= end:
                    return
                await self._step(stream.name, recording, timestep)
                due = max(due + pause, perf_counter() - pause)  # more than one timestep late: continue from now

    async def _step(self, stream: str, recording: int, timestep: int) -> None:
        sent = perf_counter()
        prediction = (await self.feed.step(stream, self.recordings.x[recording, timestep])).output
        latency = perf_counter() - sent
        self.report.compare(prediction, self.recordings.expected[recording, timestep], latency=latency)
        if timestep == self.recordings.x.shape[1] - 1:
            self.report.finish(right=int(np.argmax(prediction)) == int(self.recordings.labels[recording]))
