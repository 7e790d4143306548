"""Sends recordings to the demo's second model, of which the dashboard shows forecasts and what really came."""

from __future__ import annotations

import asyncio
import itertools
from time import perf_counter

from stepwell.addons.demo.recordings import Recordings
from stepwell_client import AsyncClient, AsyncModel, ClientError, Feed

FORECAST_MODEL = "motion"
"""Predicts the next timestep of the accelerometer; its feedback rule makes the next input of a prediction."""

_STREAMS = 8
_CHANNELS = 3  # the accelerometer's come first


async def send_motion(url: str, recordings: Recordings, *, speed: float = 1.0) -> None:
    """Send recordings at the recorded rate, a stream for each of the first ones, until cancelled.

    At the end of a recording the stream is reset and continues with another recording of its kind of motion.

    Args:
        url: The service's address, `http://host:port`.
        recordings: The recordings; those of one activity follow each other.
        speed: Speed relative to the recording.

    Raises:
        ClientError: The service rejects a timestep, or has not responded for a minute.
    """
    async with AsyncClient(url) as client:
        model = client.model(FORECAST_MODEL)
        async with model.feed() as feed, asyncio.TaskGroup() as tasks:
            for number in range(_STREAMS):
                tasks.create_task(_play(model, feed, recordings, number, 1 / (recordings.rate_hz * speed)))


async def _play(model: AsyncModel, feed: Feed, recordings: Recordings, number: int, pause: float) -> None:
    name, stride = f"wrist-{number + 1}", len(recordings) // _STREAMS
    stream = model.stream(name)
    due = perf_counter() + pause * number / _STREAMS  # spreads the streams evenly
    for count in itertools.count():
        try:
            await stream.resume()
            await stream.reset()
            for row in recordings.x[number * stride + count % stride, :, :_CHANNELS]:
                await asyncio.sleep(max(0.0, due - perf_counter()))
                await feed.step(name, row)
                due = max(due + pause, perf_counter() - pause)  # more than one timestep late: continue from now
        except ClientError as error:
            if error.code != "state_changed":  # somebody has reset or stepped the stream, for example in the dashboard
                raise
