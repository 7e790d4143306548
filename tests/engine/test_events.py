"""What a watcher that comes back is told: everything after the step that it saw, or how much is not kept."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from service.engine.events import Event, decode_events, following, joined


def event(step: int, length: int = 1, life: int = 0) -> Event:
    return Event("t", "m", "s", step, length, bytes([life, step]), {}, {})


def life(steps: Iterable[int], number: int = 0) -> list[Event]:
    return [event(step, life=number) for step in steps]


def steps(events: Iterable[Event]) -> list[int]:
    return [one.step for one in events]


def test_events_travel_in_one_message() -> None:
    sent = [event(1), event(4, 3), event(5)]

    assert decode_events(b"".join(one.encode() for one in sent)) == sent


def test_what_follows_on_a_step_is_told() -> None:
    assert following(life(range(1, 11)), 7, 10) == (0, life([8, 9, 10]))


def test_one_that_has_seen_all_is_told_nothing() -> None:
    assert following(life(range(1, 11)), 10, 10) == (0, [])


def test_what_is_not_kept_any_more_is_counted() -> None:
    missed, told = following(life(range(90, 101)), 40, 100)

    assert (missed, told[0].step) == (49, 90)


def test_without_a_history_the_gap_is_as_long_as_the_stream_went_on() -> None:
    assert following([], 40, 100) == (60, [])


def test_a_chunk_is_told_whole() -> None:
    assert following([event(10, 10), event(30, 20)], 15, 30) == (0, [event(30, 20)])


def test_a_step_is_sought_in_the_newest_life_that_reached_it() -> None:
    events = life(range(96, 101)) + life(range(1, 6), 1)

    assert steps(following(events, 98, 5)[1]) == [99, 100, 1, 2, 3, 4, 5]
    assert steps(following(events, 3, 5)[1]) == [4, 5]


def test_after_a_return_to_a_snapshot_the_steps_go_on_from_there() -> None:
    events = life(range(1, 11)) + life([6, 7], 1)

    assert steps(following(events, 10, 7)[1]) == [6, 7]


def test_one_that_was_in_a_life_of_which_nothing_is_kept_is_told_of_a_gap() -> None:
    assert following(life([1, 2]), 50, 2) == (1, life([1, 2]))
    assert following([], 50, 2) == (1, [])


def test_holes_left_by_workers_that_keep_nothing_are_counted() -> None:
    assert following(life([1, 2, 3, 7, 8]), 1, 10) == (3 + 2, life([2, 3, 7, 8]))


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    first_heard=st.integers(0, 30),
    kept=st.integers(0, 30),
    seen=st.integers(0, 30),
)
def test_a_history_and_what_was_heard_make_one_row(lengths: list[int], first_heard: int, kept: int, seen: int) -> None:
    """Every event after what was seen is told once, in order; what is in neither window is counted."""
    events, step = [], 0
    for length in lengths:
        step += length
        events.append(event(step, length))
    seen = min(seen, len(events))
    since = events[seen - 1].step if seen else 0
    history, heard = events[max(len(events) - kept, 0) :], events[first_heard:]

    missed, told = following(joined(history, heard), since, step)

    assert told == [one for one in events[seen:] if one in history or one in heard]
    assert missed == step - since - sum(one.length for one in told)
