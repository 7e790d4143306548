"""A replay sends each recording in order, repeatedly, and reports every difference."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from stepwell.addons.demo.recordings import Recordings
from stepwell.addons.demo.replay import replay
from stepwell.addons.demo.report import Report
from stepwell_client import ClientError
from tests.addons.demo.fake_service import FakeService

SECONDS = 1.0


def shortened(streams: int = 3, timesteps: int = 100) -> Recordings:
    """Return the demo's recordings, the first few and their first timesteps."""
    whole = Recordings.load()
    return dataclasses.replace(
        whole,
        x=whole.x[:streams, :timesteps],
        expected=whole.expected[:streams, :timesteps],
        labels=whole.labels[:streams],
    )


def run(service: FakeService, recordings: Recordings, *, speed: float = math.inf, seconds: float = SECONDS) -> Report:
    async def replay_service() -> Report:
        async with service.running() as url:
            return await replay(url, seconds=seconds, speed=speed, recordings=recordings)

    return asyncio.run(replay_service())


def run_until(fact: Callable[[Report], bool], service: FakeService, recordings: Recordings) -> Report:
    """Replay without a time limit until a condition holds, and return the report of that moment."""
    found: list[Report] = []

    async def replay_service() -> None:
        def check(report: Report) -> None:
            if fact(report):
                found.append(report)
                replaying.cancel()

        async with service.running() as url:
            endless = replay(url, seconds=None, speed=math.inf, recordings=recordings, on_progress=check)
            replaying = asyncio.create_task(endless)
            with contextlib.suppress(asyncio.CancelledError):
                await replaying

    asyncio.run(replay_service())
    return found[0]


def test_correct_predictions_are_within_the_tolerance() -> None:
    report = run(FakeService(), shortened())

    assert report.ok
    assert report.steps > 0
    assert report.max_difference <= 1e-5


def test_a_prediction_outside_the_tolerance_fails_the_report() -> None:
    report = run(FakeService(shift=0.01), shortened())

    assert not report.ok
    assert report.beyond == report.steps
    assert report.max_difference == pytest.approx(0.01, abs=1e-4)


def test_each_stream_sends_its_timesteps_in_order_and_restarts_after_a_reset() -> None:
    service = FakeService()
    run(service, shortened(streams=2, timesteps=5), seconds=1.5)

    sent = service.steps["watch-01"]
    assert len(sent) > 5
    assert sent == [1 + i % 5 for i in range(len(sent))]
    assert service.resets.count("watch-01") == len(sent) // 5 + 1


def test_every_stream_is_replayed() -> None:
    service = FakeService()
    run_until(lambda _: len(service.steps) >= 12, service, shortened(streams=12, timesteps=10))

    assert sorted(service.steps) == [f"watch-{number:02d}" for number in range(1, 13)]


def test_finished_recordings_and_correct_final_predictions_are_counted() -> None:
    report = run_until(lambda so_far: so_far.finished >= 1, FakeService(), shortened(streams=1))

    assert report.right == report.finished


def test_no_timestep_is_sent_before_its_time() -> None:
    report = run(FakeService(), shortened(streams=2), speed=2.0, seconds=1.0)

    assert 0 < report.steps <= 2 * (1 + 10 * 2 * report.seconds)


def test_a_rejected_timestep_ends_the_replay_with_the_error_of_the_service() -> None:
    with pytest.raises(ClientError, match="motion has 5 elements"):
        run(FakeService(refuses=True), shortened())


def test_an_unreachable_service_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepwell.addons.demo.replay._TIMEOUT_S", 0.2)
    with pytest.raises(ClientError, match=r"127\.0\.0\.1:9"):
        asyncio.run(replay("http://127.0.0.1:9", seconds=1, speed=1, recordings=shortened()))


def test_each_prediction_is_compared_with_that_of_its_own_timestep() -> None:
    recordings = shortened(streams=1)
    late = dataclasses.replace(recordings, expected=np.roll(recordings.expected, 1, axis=1))

    assert not run(FakeService(), late).ok
