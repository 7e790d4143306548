"""`resample`: the rows of a data frame as the timesteps that a connector makes of the same messages."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwell.addons.event_time.clock import Clock, Late, Tick
from stepwell.addons.event_time.tick_values import FILLS, TAKES, Fill, Take, TickColumn, TickValues, Values, parts_of
from stepwell.addons.event_time.times import BadTimeError, time_of
from stepwell_export.runtime.durations import duration_of
from stepwell_export.runtime.errors import StepwellError


class ResampleError(StepwellError):
    """A frame cannot be resampled by these rules."""

    code = "bad_setting"


def resample(
    frame: Any,
    *,
    every: str,
    take: Take | Mapping[str, Take] = "last",
    fill: Fill = "hold",
    gap: int = 60,
    time: str | None = None,
    stream: str | None = None,
) -> Any:
    """Return one row for each tick, as `stepwell connect --every` makes timesteps of messages that are not late.

    A tick has the rows later than the tick before it, until its own time; ticks are whole multiples of `every` since
    1970. Rows may have any order. After `gap` ticks in a row without rows there is none until the next tick with rows.

    Args:
        frame: A pandas DataFrame, whose columns are numbers. NaN is no value.
        every: From one tick to the next, such as `1s`, `500ms` or `5m`.
        take: Which value of several: `last`, `mean`, `sum`, `min`, `max` or `count`; or one of these for each column,
            `last` for those that are not named.
        fill: Which value if there is none: `hold` the newest, `nan` or `zero`.
        gap: Ticks in a row that are filled at most.
        time: The column with the times; None: the index has them. Times without a zone are UTC.
        stream: The column whose values divide the rows into streams; None: all are of one.

    Returns:
        A DataFrame of float64 with the ticks' times as its index, named as before; with `stream`, that column first,
        and the streams one after the other.

    Raises:
        ResampleError: A rule is unknown, or a time is none.
    """
    step = duration_of(every)
    if not step:
        raise ResampleError(f"every is {every!r}; expected a duration such as 1s, 500ms or 5m.")
    if fill not in FILLS:
        raise ResampleError(f"fill is {fill!r}; expected {', '.join(FILLS)}.")
    names = [name for name in frame.columns if name not in (time, stream)]
    takes: Mapping[str, Any] = dict.fromkeys(names, take) if isinstance(take, str) else take
    for name, rule in takes.items():
        if rule not in TAKES or name not in names:
            raise ResampleError(f"take has {name}={rule}; expected one of {', '.join(TAKES)} for a column.")
    kind = np.dtype(float)
    columns = [TickColumn(str(name), kind, (), takes.get(name, "last"), may_be_missing=True) for name in names]
    index = frame.index if time is None else frame[time]
    rows = [
        _Row(at, one, {str(name): np.array(value) for name, value in zip(names, values, strict=True)})
        for at, one, values in zip(
            map(_time_of, index),
            [""] * len(index) if stream is None else frame[stream].tolist(),
            frame[names].to_numpy(np.float64),
            strict=True,
        )
    ]
    found = _ticks(rows, Clock[_Row](step, 0, gap=gap, parts=_parts_of), TickValues(columns, fill))
    numbers = np.array([number for _, number, _ in found], np.int64) * step
    series = type(frame)(
        {name: np.array([row[str(name)] for _, _, row in found], np.float64) for name in names},
        index=numbers.astype("datetime64[us]"),
    )
    series.index.name = frame.index.name if time is None else time
    if getattr(getattr(index, "dt", index), "tz", None) is not None:
        series = series.tz_localize("UTC").tz_convert(getattr(index, "dt", index).tz)
    if stream is not None:
        series.insert(0, stream, [name for name, _, _ in found])
    return series


def _time_of(value: Any) -> int:
    try:
        return time_of(value if not hasattr(value, "to_pydatetime") else _rounded(value), "s")
    except BadTimeError as exc:
        raise ResampleError(f"A row cannot be used: {exc}.", fix="Give times as an index or with time=.") from exc


def _rounded(value: Any) -> Any:
    return value.round("us").to_pydatetime()


@dataclass(frozen=True, slots=True)
class _Row:
    """A row: its time in us, its stream, and its values."""

    time: int
    stream: Any
    values: Values


def _parts_of(row: _Row) -> Iterator[Hashable]:
    return parts_of(row.values)


def _ticks(rows: Sequence[_Row], clock: Clock[_Row], values: TickValues) -> list[tuple[Any, int, Mapping[str, Any]]]:
    """Return the stream, the number and the values of each tick, the streams one after the other."""
    found: dict[Any, list[tuple[Any, int, Mapping[str, Any]]]] = {one.stream: [] for one in rows}

    def keep(decided: Sequence[Tick[_Row] | Late[_Row]]) -> None:
        for tick in decided:
            assert isinstance(tick, Tick), "rows that are sorted are never late"
            if tick.pauses:
                values.forget(tick.stream)
            else:
                made = values.of(tick.stream, [one.values for one in tick.items])
                found[tick.stream].append((tick.stream, tick.number, made))

    for row in sorted(rows, key=lambda one: one.time):
        keep(clock.add(row.stream, row.stream, row.time, row))
    keep(clock.finish())
    return [one for own in found.values() for one in own]
