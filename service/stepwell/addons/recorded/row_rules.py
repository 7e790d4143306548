"""`RowRules`: recorded rows in the order of their times, or as ticks of a clock, by the rules of the connector."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np

from stepwell.addons.event_time.clock import Clock, Late, Tick
from stepwell.addons.event_time.order import Decided, Order
from stepwell.addons.event_time.tick_values import (
    FILLS,
    TAKES,
    Fill,
    NoValueError,
    Take,
    TickColumn,
    TickValues,
    Values,
    parts_of,
)
from stepwell.addons.event_time.times import LIMIT, SECOND
from stepwell.addons.recorded.blocks import Rows
from stepwell.addons.recorded.errors import RecordedDataError
from stepwell_export.runtime.durations import duration_of, in_words
from stepwell_export.runtime.manifest import Array, InputSpec


class RowRulesError(RecordedDataError):
    """A rule is none, or the inputs of the model cannot have values by it."""

    code = "bad_setting"


class Timesteps(NamedTuple):
    """What rows became.

    Attributes:
        rows: The timesteps in the order of their times, those of one time in the order of their streams' codes.
        n_late: Rows that are left out, since newer ones of their streams go on before them.
        n_left_out: Rows that are left out, since their time is before 1970, or their tick has no value of an input.
    """

    rows: Rows
    n_late: int
    n_left_out: int


def missing_name(name: str) -> str:
    """Return under which name rows have which of them have no value of an integer input, `(n,)` bool."""
    return f"{name} is missing"


@dataclass(frozen=True, slots=True)
class RowRules:
    """How rows become timesteps.

    Attributes:
        wait: How much later the newest time of a stream must be than that of a row which goes on, in us.
        every: From one tick to the next, in us; 0: every row is a timestep.
        takes: Which value of several a tick has, by input; the empty name holds for those that are not named.
        fill: Which value a tick has if there is none.
        gap: Ticks in a row that are filled at most.
    """

    wait: int
    every: int = 0
    takes: dict[str, Take] = field(default_factory=dict)
    fill: Fill = "hold"
    gap: int = 60

    @classmethod
    def of(cls, order: str | None, every: str | None, takes: dict[str, str], fill: str, gap: int) -> RowRules | None:
        """Return the rules that flags give; None: rows are timesteps in their order.

        Raises:
            RowRulesError: A value is wrong.
        """
        if order is None and every is None:
            return None
        step = 0 if every is None else duration_of(every)
        wait = step if order is None else duration_of(order)
        if wait is None or step is None or (every is not None and not step):
            raise RowRulesError(
                f"--order is {order}, --every {every}; expected durations such as 5s, 500ms or 1m.", fix="Correct them."
            )
        if fill not in FILLS or not set(takes.values()) <= set(TAKES):
            raise RowRulesError(
                f"--fill is {fill!r}, --take {', '.join(takes.values())}; expected {', '.join(FILLS)} and "
                f"{', '.join(TAKES)}.",
                fix="Correct them.",
            )
        return cls(wait, step, cast("dict[str, Take]", takes), cast("Fill", fill), gap)

    @property
    def suffix(self) -> str:
        """The end of the source's id: the same rows by other rules are another source."""
        return f"#every={in_words(self.every)}" if self.every else "#time"

    def read_specs(self, specs: Sequence[InputSpec]) -> list[InputSpec]:
        """Return the inputs as rows have them: a row may have some of its tick's, and values are rounded once."""
        if not self.every:
            return list(specs)
        return [
            one.model_copy(update={"dtype": "float64", "missing": "nan"}) if np.dtype(one.dtype).kind == "f" else one
            for one in specs
        ]

    def columns(self, specs: Sequence[InputSpec]) -> list[TickColumn]:
        """Return how ticks get the values of each input.

        Raises:
            RowRulesError: An input is unknown, or cannot have values by these rules.
        """
        take = self.takes.get("", "last")
        columns = [
            TickColumn(
                one.name, np.dtype(one.dtype), tuple(one.shape), self.takes.get(one.name, take),
                may_be_missing=one.missing == "nan",
            )
            for one in specs
        ]  # fmt: skip
        names = [one.name for one in columns]
        errors = [one.error(self.fill) for one in columns]
        errors += [
            f"--take names {name!r}; the model has {', '.join(names)}."
            for name in self.takes
            if name not in ("", *names)
        ]
        for error in filter(None, errors):
            raise RowRulesError(error, fix="Give other values of --take and --fill.")
        return columns

    def apply(self, parts: Iterable[Rows], specs: Sequence[InputSpec]) -> Timesteps:
        """Return the timesteps of rows. The watermark is that of each stream.

        Args:
            parts: Consecutive rows with their times in seconds; all of them are held in memory.
            specs: The inputs of the model.

        Raises:
            RecordedDataError: There are no rows, or a time is after the year 9999.
        """
        rows = _joined(parts)
        assert rows.times is not None
        if (too_late := rows.times > LIMIT / SECOND).any():
            row = int(np.argmax(too_late))
            raise RecordedDataError(
                f"Row {rows.positions[row] + 1} has the time {rows.times[row]:.15g} s, which is after the year 9999.",
                fix="Say with --time-unit whether times are in ms, us or ns.",
            )
        is_in_range = rows.times >= 0
        n_before_1970 = len(rows) - int(is_in_range.sum())
        rows = rows.where(is_in_range)
        assert rows.times is not None
        times = np.rint(rows.times * 1e6).astype(np.int64).tolist()
        found, n_late, n_left_out = self._ticks(rows, times, specs) if self.every else self._ordered(rows, times)
        assert found.times is not None
        found = found.where(np.lexsort((found.codes, found.times)))
        numbered = Rows(found.codes, np.arange(len(found)), found.inputs, found.times)
        return Timesteps(numbered, n_late, n_left_out + n_before_1970)

    def _ordered(self, rows: Rows, times: Sequence[int]) -> tuple[Rows, int, int]:
        order = Order[int](self.wait)
        decided: list[Decided[int]] = []
        for row, (code, time) in enumerate(zip(rows.codes.tolist(), times, strict=True)):
            decided += order.add(str(code), str(code), time, row)
        decided += order.flush()
        kept = np.array([one.item for one in decided if not one.late], np.intp)
        return rows.where(kept), len(decided) - len(kept), 0

    def _ticks(self, rows: Rows, times: Sequence[int], specs: Sequence[InputSpec]) -> tuple[Rows, int, int]:
        clock = Clock[Values](self.every, self.wait, gap=self.gap, parts=_parts)
        decided: list[Tick[Values] | Late[Values]] = []
        arrays = {one.name: rows.inputs[one.name] for one in specs}
        missing = {name: rows.inputs[key] for name in arrays if (key := missing_name(name)) in rows.inputs}
        for row, (code, time) in enumerate(zip(rows.codes.tolist(), times, strict=True)):
            item: dict[str, Array | None] = {name: array[row] for name, array in arrays.items()}
            item.update((name, None) for name, mask in missing.items() if mask[row])
            decided += clock.add(str(code), str(code), time, item)
        decided += clock.finish()
        values = TickValues(self.columns(specs), self.fill)
        codes, numbers, made = [], [], []
        n_late = n_left_out = 0
        for one in decided:
            if isinstance(one, Late):
                n_late += 1
            elif one.pauses:
                values.forget(one.stream)
            else:
                try:
                    made.append(values.of(one.stream, one.items))
                except NoValueError:
                    n_left_out += len(one.items)
                    continue
                codes.append(int(one.stream))
                numbers.append(one.number)
        inputs: dict[str, Array] = {
            one.name: np.array([each[one.name] for each in made], one.dtype).reshape(-1, *one.row_shape)
            for one in specs
        }
        seconds = np.array(numbers, np.float64) * (self.every / 1e6)
        return Rows(np.array(codes, np.int64), np.arange(len(codes)), inputs, seconds), n_late, n_left_out


def _parts(item: Values) -> Iterator[Hashable]:
    return parts_of(item)


def _joined(parts: Iterable[Rows]) -> Rows:
    found = list(parts)
    if not found:
        raise RecordedDataError("There are no rows.")
    columns: Any = {name: np.concatenate([one.inputs[name] for one in found]) for name in found[0].inputs}
    times = [one.times for one in found if one.times is not None]
    return Rows(
        np.concatenate([one.codes for one in found]),
        np.concatenate([one.positions for one in found]),
        columns,
        np.concatenate(times) if times else None,
    )
