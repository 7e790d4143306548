"""What a reconnecting subscriber receives: every event after its last step, or the number of those lost."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.addons.watch.commit_events import CommitEvent, decode_events, events_since, merge_log_and_live


def event(step: int, length: int = 1, incarnation: int = 0) -> CommitEvent:
    return CommitEvent("t", "m", "s", step, length, bytes([incarnation, step]), {}, {})


def incarnation(steps: Iterable[int], number: int = 0) -> list[CommitEvent]:
    return [event(step, incarnation=number) for step in steps]


def steps(events: Iterable[CommitEvent]) -> list[int]:
    return [one.step for one in events]


def test_several_events_are_encoded_in_one_message() -> None:
    sent = [event(1), event(4, 3), event(5)]

    assert decode_events(b"".join(one.encode() for one in sent)) == sent


@pytest.mark.parametrize(
    ("log", "since", "step", "missed", "first"),
    [
        (incarnation(range(1, 11)), 7, 10, 0, 8),
        (incarnation(range(1, 11)), 10, 10, 0, None),
        (incarnation(range(90, 101)), 40, 100, 49, 90),
        ([], 40, 100, 60, None),
        ([event(10, 10), event(30, 20)], 15, 30, 0, 30),
    ],
    ids=["the later ones", "all were seen", "some are not kept", "none is kept", "a chunk is never split"],
)
def test_events_after_a_step_are_returned_and_those_that_are_not_kept_are_counted(
    log: list[CommitEvent], since: int, step: int, missed: int, first: int | None
) -> None:
    later = [one for one in log if first is not None and one.step >= first]

    assert events_since(log, since, step) == (missed, later)


def test_a_step_is_looked_up_in_the_newest_incarnation_that_reached_it() -> None:
    events = incarnation(range(96, 101)) + incarnation(range(1, 6), 1)

    assert steps(events_since(events, 98, 5)[1]) == [99, 100, 1, 2, 3, 4, 5]
    assert steps(events_since(events, 3, 5)[1]) == [4, 5]


def test_after_a_reset_to_a_snapshot_events_continue_from_its_step() -> None:
    events = incarnation(range(1, 11)) + incarnation([6, 7], 1)

    assert steps(events_since(events, 10, 7)[1]) == [6, 7]


def test_a_step_of_an_incarnation_that_is_not_kept_is_a_gap() -> None:
    assert events_since(incarnation([1, 2]), 50, 2) == (1, incarnation([1, 2]))
    assert events_since([], 50, 2) == (1, [])


def test_holes_left_by_workers_without_an_event_log_are_counted() -> None:
    assert events_since(incarnation([1, 2, 3, 7, 8]), 1, 10) == (3 + 2, incarnation([2, 3, 7, 8]))


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    first_live=st.integers(0, 30),
    kept=st.integers(0, 30),
    seen=st.integers(0, 30),
)
def test_the_event_log_and_live_events_merge_into_one_sequence(
    lengths: list[int], first_live: int, kept: int, seen: int
) -> None:
    """Each event after the last one seen is returned once, in order; events in neither source are counted."""
    events, step = [], 0
    for length in lengths:
        step += length
        events.append(event(step, length))
    seen = min(seen, len(events))
    since = events[seen - 1].step if seen else 0
    history, live = events[max(len(events) - kept, 0) :], events[first_live:]

    missed, events_returned = events_since(merge_log_and_live(history, live), since, step)

    assert events_returned == [one for one in events[seen:] if one in history or one in live]
    assert missed == step - since - sum(one.length for one in events_returned)
