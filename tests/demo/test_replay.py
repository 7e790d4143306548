"""A replay sends each recording in order, again and again, and tells every difference."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from service.demo.recordings import Recordings
from service.demo.replay import DemoError, replay
from service.demo.report import Report
from tests.demo.peer import Peer

SECONDS = 0.4


def some(streams: int = 3, timesteps: int = 100) -> Recordings:
    """The first recordings of the demo, or the beginnings of them."""
    whole = Recordings.load()
    return dataclasses.replace(
        whole,
        x=whole.x[:streams, :timesteps],
        expected=whole.expected[:streams, :timesteps],
        labels=whole.labels[:streams],
    )


def run(peer: Peer, recordings: Recordings, *, speed: float = math.inf, seconds: float = SECONDS) -> Report:
    async def against_a_peer() -> Report:
        async with peer.running() as url:
            return await replay(url, seconds=seconds, speed=speed, recordings=recordings)

    return asyncio.run(against_a_peer())


def run_until(fact: Callable[[Report], bool], peer: Peer, recordings: Recordings) -> Report:
    """Replay without an end until something is so, and return the report of that moment."""
    found: list[Report] = []

    async def against_a_peer() -> None:
        def look(report: Report) -> None:
            if fact(report):
                found.append(report)
                replaying.cancel()

        async with peer.running() as url:
            endless = replay(url, seconds=None, speed=math.inf, recordings=recordings, on_progress=look)
            replaying = asyncio.create_task(endless)
            with contextlib.suppress(asyncio.CancelledError):
                await replaying

    asyncio.run(against_a_peer())
    return found[0]


def test_right_predictions_are_within_the_tolerance() -> None:
    report = run(Peer(), some())

    assert report.ok
    assert report.steps > 0
    assert report.max_difference <= 1e-5


def test_a_prediction_beyond_the_tolerance_makes_the_report_not_ok() -> None:
    report = run(Peer(shift=0.01), some())

    assert not report.ok
    assert report.beyond == report.steps
    assert report.max_difference == pytest.approx(0.01, abs=1e-4)


def test_each_stream_sends_its_timesteps_in_order_and_begins_anew_after_a_reset() -> None:
    peer = Peer()
    run(peer, some(streams=2, timesteps=5), seconds=1.5)

    sent = peer.steps["watch-01"]
    assert len(sent) > 5
    assert sent == [1 + i % 5 for i in range(len(sent))]
    assert peer.resets.count("watch-01") == len(sent) // 5 + 1


def test_every_stream_is_replayed() -> None:
    peer = Peer()
    run_until(lambda _: len(peer.steps) >= 12, peer, some(streams=12, timesteps=10))

    assert sorted(peer.steps) == [f"watch-{number:02d}" for number in range(1, 13)]


def test_finished_recordings_are_counted_with_those_whose_last_prediction_was_right() -> None:
    report = run_until(lambda so_far: so_far.finished >= 1, Peer(), some(streams=1))

    assert report.right == report.finished


def test_nothing_is_sent_before_its_time_in_the_recording() -> None:
    report = run(Peer(), some(streams=2), speed=2.0, seconds=1.0)

    assert 0 < report.steps <= 2 * (1 + 10 * 2 * report.seconds)


def test_progress_is_told_with_the_counts_so_far() -> None:
    assert run_until(lambda so_far: so_far.steps > 0, Peer(), some()).steps > 0


def test_a_refused_timestep_ends_the_replay_with_the_service_s_words() -> None:
    with pytest.raises(DemoError, match="motion has 5 elements"):
        run(Peer(refuses=True), some())


def test_a_closed_connection_ends_the_replay_with_its_code() -> None:
    with pytest.raises(DemoError, match="code 1012 draining"):
        run(Peer(hangs_up=True), some())


def test_a_service_that_is_not_there_is_told() -> None:
    with pytest.raises(DemoError, match="does not answer") as caught:
        asyncio.run(replay("http://127.0.0.1:9", seconds=1, speed=1, recordings=some()))

    assert "stepwell serve" in caught.value.fix


def test_the_expected_predictions_are_compared_at_their_own_timestep() -> None:
    recordings = some(streams=1)
    late = dataclasses.replace(recordings, expected=np.roll(recordings.expected, 1, axis=1))

    assert not run(Peer(), late).ok
