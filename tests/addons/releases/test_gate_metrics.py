"""What the metrics of a release's gate show: that it is not judged yet, and that it has aborted the release."""

from __future__ import annotations

import re

from tests.addons.releases.fleet import Fleet, wait_until

WAITS = 'stepwell_release_gate_waits{model="%s"}'


def ended(how: str) -> str:
    return f'stepwell_release_ended_timestamp_seconds{{how="{how}",model="%s"}}'


def shown(releases: Fleet, series: str) -> set[float | None]:
    """Return the values of a series of the model in all replicas; None: a replica does not have it."""
    series %= releases.model
    pages = [replica.http.get("/metrics").text for replica in releases.replicas]
    found = [re.search(rf"^{re.escape(series)} (\S+)$", page, re.MULTILINE) for page in pages]
    return {float(one[1]) if one else None for one in found}


def test_a_gate_waits_in_every_replica_until_enough_was_compared(releases: Fleet) -> None:
    releases.put(candidate=2, mode="shadow", percent=100, gate={"min_compared": 3, "max_lost": 0})
    wait_until(lambda: shown(releases, WAITS) == {1.0})
    for x in range(3):
        releases.step("s", [x])
    wait_until(lambda: shown(releases, WAITS) == {0.0})


def test_every_replica_shows_when_a_gate_has_aborted_a_release(releases: Fleet) -> None:
    releases.put(candidate=2, mode="ramp", percent=100, gate={"min_compared": 3, "max_abs": {"y": 1}})
    for x in range(5):
        releases.step("s", [x])
    wait_until(lambda: releases.release()["ended"] is not None)
    at = releases.release()["ended"]["at"]
    wait_until(lambda: shown(releases, ended("gate")) == {at})

    assert shown(releases, ended("aborted")) == {None}


def test_a_release_that_a_request_ends_is_not_shown_as_aborted_by_its_gate(releases: Fleet) -> None:
    releases.put(candidate=2, mode="ramp", percent=100, gate={"max_lost": 0})
    at = releases.end("abort")["ended"]["at"]
    wait_until(lambda: shown(releases, ended("aborted")) == {at})
    wait_until(lambda: shown(releases, WAITS) <= {0.0, None})

    assert shown(releases, ended("gate")) == {None}
