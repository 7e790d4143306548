"""A candidate that raises, hangs or computes NaN: what clients receive, and what is counted."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest

from tests.addons.releases.builds import adder, raising_at
from tests.addons.releases.fleet import Fleet, fleet, wait_until
from tests.graphs import nan_at
from tests.servers import Server

over_modes = pytest.mark.parametrize(("mode", "by_feed"), [("shadow", True), ("ramp", False)])


def compared_after(releases: Fleet, steps: int) -> dict[str, int]:
    """Return what was compared once all workers have added their counts."""
    wait_until(lambda: releases.release()["compared"]["steps"] == steps)
    compared: dict[str, int] = releases.release()["compared"]
    return compared


@over_modes
def test_the_stream_on_whose_values_the_candidate_raises_leaves_the_trial_and_no_other(
    redis_server: Server, tmp_path: Path, mode: str, *, by_feed: bool
) -> None:
    xs = [1, 2, 3, 1, 1, 2]
    with fleet(redis_server.url, tmp_path, adder, lambda: raising_at(3), by_feed=by_feed) as releases:
        releases.put(candidate=2, mode=mode, percent=100)
        answers = [releases.bulk(["bad", "good"], [[x], [1]]) for x in xs]
        compared = compared_after(releases, 3 + 6)  # of the stream that leaves, up to the timestep at which it does

    assert [answer["outputs"]["y"] for answer in answers] == [
        [[bad], [good]] for bad, good in zip(accumulate(xs), range(1, 7), strict=True)
    ]
    assert compared["lost" if mode == "shadow" else "fell_back"] == 1
    assert compared["non_finite"] == 0
    assert [answer.get("version") for answer in answers] == [None] * 2 + [[1, None] if mode == "ramp" else None] + [
        None
    ] * 3


@over_modes
def test_nan_of_the_candidate_is_never_seen(redis_server: Server, tmp_path: Path, mode: str, *, by_feed: bool) -> None:
    with fleet(redis_server.url, tmp_path, lambda: nan_at(10**6), lambda: nan_at(3), by_feed=by_feed) as releases:
        releases.put(candidate=2, mode=mode, percent=100)
        answers = [releases.step("s", [float(x)], seq=x) for x in range(1, 7)]
        compared = compared_after(releases, 3)

    assert [answer["outputs"]["y"] for answer in answers] == [[y] for y in accumulate(map(float, range(1, 7)))]
    assert (compared["non_finite"], compared["lost"] + compared["fell_back"]) == (1, 1)


def test_a_stream_that_has_left_stays_out_until_the_next_release(redis_server: Server, tmp_path: Path) -> None:
    with fleet(redis_server.url, tmp_path, adder, lambda: raising_at(3)) as releases:
        releases.put(candidate=2, mode="ramp", percent=100)
        for x in (1, 3, 1, 1):
            releases.step("s", [x])
        status = releases.replica.http.get(releases.replica.path("fold", "s"), params={"outputs": "true"}).json()
        compared = compared_after(releases, 2)
        releases.end("abort")
        releases.put(candidate=2, mode="ramp", percent=100)
        again = releases.step("s", [1])

    assert (status["version"], status["outputs"]["y"]) == (1, [6])
    assert compared["fell_back"] == 1
    assert (again["version"], again["outputs"]["y"]) == (2, [7])
