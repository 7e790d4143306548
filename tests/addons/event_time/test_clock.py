"""`addons/event_time/clock.py` and `values.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stepwell.addons.event_time.clock import Clock, Late, Tick
from stepwell.addons.event_time.tick_values import Fill, NoValueError, Take, TickColumn, TickValues, parts_of


def shown(decided: list[Tick[int] | Late[int]]) -> list[str]:
    """Return ticks as `stream number [messages] +gap`, pauses with a `|` and late messages with a `!`."""
    found = []
    for one in decided:
        if isinstance(one, Late):
            found.append(f"{one.item}!")
        else:
            gap = f" +{one.gap}" if one.gap else ""
            found.append(f"{one.stream} {one.number}{'|' if one.pauses else ''} {one.items}{gap}")
    return found


def add(clock: Clock[int], *times: int, stream: str = "a") -> list[str]:
    return [text for time in times for text in shown(clock.add("p", stream, time, time))]


def test_a_tick_has_the_messages_until_its_time_and_is_done_once_the_watermark_is_later() -> None:
    clock = Clock[int](10, 0, gap=9)
    assert add(clock, 3, 10, 7, 10) == []
    assert add(clock, 11) == ["a 1 [3, 7, 10, 10]"]
    assert add(clock, 10) == ["10!"]


def test_the_watermark_waits_for_late_messages() -> None:
    clock = Clock[int](10, 10, gap=9)
    assert add(clock, 5, 20, 6) == []
    assert add(clock, 21) == ["a 1 [5, 6]"]


def test_ticks_without_messages_are_filled_until_the_stream_pauses_and_go_on_behind_the_gap() -> None:
    clock = Clock[int](10, 0, gap=2)
    assert add(clock, 5, 95) == ["a 1 [5]", "a 2 []", "a 3 []", "a 4| []"]
    assert add(clock, 101) == ["a 10 [95] +6"]


def test_a_gap_is_counted_from_the_position_in_the_record() -> None:
    clock = Clock[int](10, 0, gap=2)
    clock.resume("a", 3)
    assert add(clock, 95, 101) == ["a 10 [95] +6"]


def test_every_silence_is_a_gap_if_nothing_may_be_filled() -> None:
    assert add(Clock[int](10, 0, gap=0), 5, 15, 35, 41) == ["a 1 [5]", "a 2 [15]", "a 3| []", "a 4 [35] +1"]


def test_streams_of_a_partition_share_its_watermark() -> None:
    clock = Clock[int](10, 0, gap=9)
    assert add(clock, 5) == []
    assert add(clock, 25, stream="b") == ["a 1 [5]", "a 2 []"]


def test_an_open_tick_stays_open_while_its_partition_is_idle() -> None:
    clock = Clock[int](10, 10, gap=9)
    add(clock, 5, 15)
    assert shown(clock.flush("p")) == ["a 1 [5]"]
    assert shown(clock.finish()) == ["a 2 [15]"]


def test_the_messages_of_the_newest_tick_that_had_any_are_kept_until_the_next_one_or_the_pause() -> None:
    clock = Clock[int](10, 0, gap=1)
    freed = [(one.number, one.freed) for time in (5, 15, 21, 41) for one in clock.add("p", "a", time, time)]  # type: ignore[union-attr]
    assert freed == [(1, []), (2, [5]), (3, [15]), (4, [])]
    assert [one.freed for one in clock.add("p", "b", 99, 99)] == [[21], [], [41]]  # type: ignore[union-attr]


def test_a_message_is_kept_while_it_has_the_newest_value_of_an_input() -> None:
    clock = Clock[Any](10, 0, gap=9, parts=parts_of)
    both, one = {"x": np.array(1.0), "y": np.array(2)}, {"x": np.array(1.0), "y": None}
    freed = []
    for time, item in ((5, both), (15, one), (25, one), (35, both), (45, one)):
        freed += [tick.freed for tick in clock.add("p", "a", time, item)]  # type: ignore[union-attr]
    assert [len(one) for one in freed] == [0, 0, 1, 2]


def test_ticks_that_are_read_again_after_a_crash_are_made_again_and_their_messages_are_not_late() -> None:
    clock = Clock[int](10, 10, gap=1)
    clock.resume("a", 4)
    assert add(clock, 15, 55, 45) == ["a 2 [15]", "a 3 []", "a 4| []"]
    assert add(clock, 35) == ["35!"]
    assert add(clock, 61) == ["a 5 [45]"]


def test_a_gap_before_a_tick_of_the_record_is_a_gap_again() -> None:
    clock = Clock[int](10, 0, gap=2)
    clock.resume("a", 10_000)
    assert add(clock, 5, 15, 99_995) == ["a 1 [5]", "a 2 [15]", "a 3 []", "a 4 []", "a 5| []"]
    assert add(clock, 100_005) == ["a 10000 [99995] +9995"]


def test_ticks_of_the_record_of_which_nothing_is_left_are_not_made_again() -> None:
    """Of messages with one input each, those of the ticks between may be acknowledged."""
    clock = Clock[Any](10, 0, gap=1, parts=parts_of)
    clock.resume("a", 50)
    x, y = {"x": np.array(1.0), "y": None}, {"x": None, "y": np.array(1.0)}
    made = [one for time, item in ((5, x), (15, y), (485, y), (525, y)) for one in clock.add("p", "a", time, item)]
    assert [(one.number, one.pauses) for one in made if isinstance(one, Tick)] == [
        (1, False), (2, False), (3, False), (49, False), (50, False), (51, True),
    ]  # fmt: skip


def test_what_another_stream_has_read_makes_no_message_late_that_is_read_again() -> None:
    clock = Clock[int](10, 0, gap=1)
    clock.resume("a", 1)
    clock.resume("b", 10)
    assert add(clock, 95, stream="b") == []
    assert add(clock, 5) == ["a 1 [5]", "a 2 []", "a 3| []"]


def test_a_message_behind_a_newer_tick_of_its_stream_is_late_after_a_crash() -> None:
    clock = Clock[int](10, 0, gap=1)
    clock.resume("a", 10)
    assert add(clock, 95, 5) == ["5!"]


def test_streams_of_which_nothing_waits_can_pause_the_oldest_first() -> None:
    clock = Clock[int](10, 0, gap=99)
    for time, stream in ((5, "a"), (15, "b"), (16, "c"), (25, "d")):
        clock.add("p", stream, time, time)
    clock.finish()
    pauses = clock.pause_oldest()
    assert [(one.stream, one.freed) for one in pauses if isinstance(one, Tick)] == [("a", [5]), ("b", [15])]
    assert "a 6 [55] +3" in add(clock, 55, 61)


def test_the_oldest_ticks_are_done_when_too_many_messages_wait() -> None:
    clock = Clock[int](10, 1000, gap=9, most=2)
    assert add(clock, 25, 5, 15) == ["a 1 [5]"]
    assert (clock.n_waiting, clock.overflowed) == (2, 1)


def values_of(take: Take, fill: Fill, *ticks: list[float | None], dtype: str = "float64", missing: bool = False) -> Any:
    column = TickColumn("x", np.dtype(dtype), (), take, may_be_missing=missing)
    values = TickValues([column], fill)
    kind = float if column.is_float else dtype
    return [
        values.of("a", [{"x": None if one is None else np.array(one, kind)} for one in tick])["x"].tolist()
        for tick in ticks
    ]


@pytest.mark.parametrize(
    ("take", "expected"),
    [("last", [2, 2, 5]), ("mean", [3, 3, 5]), ("sum", [6, 0, 5]), ("min", [2, 2, 5]), ("max", [4, 4, 5]),
     ("count", [2, 0, 1])],
)  # fmt: skip
def test_a_tick_has_one_value_of_several_and_holds_it_where_there_is_none(take: Take, expected: list[int]) -> None:
    ticks: list[list[float | None]] = [[4, np.nan, 2], [], [5, np.nan]]
    assert values_of(take, "hold", *ticks) == expected
    if take != "mean":
        assert values_of(take, "hold", [4, None, 2], [], [5], dtype="int64") == expected


def test_a_tick_is_filled_with_nan_or_zero() -> None:
    assert values_of("last", "zero", [4], []) == [4, 0]
    assert np.isnan(values_of("last", "nan", [4], [], missing=True)[1])


def test_a_tick_without_a_value_that_must_be_there_is_an_error() -> None:
    with pytest.raises(NoValueError, match="input 'x' has no value in this tick, and none before it"):
        values_of("last", "hold", [None])


def test_integers_are_exact() -> None:
    assert values_of("last", "hold", [2**62 + 1], [], dtype="int64") == [2**62 + 1] * 2


@pytest.mark.parametrize(
    ("column", "fill", "reason"),
    [
        (TickColumn("n", np.dtype("int64"), (), "mean"), "hold", "cannot be the mean"),
        (TickColumn("x", np.dtype("float32"), ()), "nan", "cannot be filled with NaN"),
        (TickColumn("b", np.dtype("bool"), (), "sum"), "hold", "cannot be a sum"),
    ],
)
def test_rules_that_an_input_cannot_have_are_named(column: TickColumn, fill: Fill, reason: str) -> None:
    assert reason in (column.error(fill) or "")
