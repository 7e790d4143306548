"""`RowRules`: recorded rows in the order of their times, or as ticks of a clock, by the rules of the connector."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from stepwell.addons.event_time.clock import Clock, Late, Tick
from stepwell.addons.event_time.order import Decided, Order
from stepwell.addons.event_time.times import duration_of
from stepwell.addons.event_time.values import (
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
from stepwell.addons.recorded.blocks import Rows
from stepwell.addons.recorded.errors import RecordedDataError
from stepwell_export.runtime.manifest import Array, InputSpec


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
            RecordedDataError: A value is wrong.
        """
        if order is None and every is None:
            return None
        step = 0 if every is None else duration_of(every)
        wait = step if order is None else duration_of(order)
        if wait is None or step is None or (every is not None and not step):
            raise RecordedDataError(
                f"--order is {order}, --every {every}; expected durations such as 5s, 500ms or 1m.", fix="Correct them."
            )
        if fill not in FILLS or not set(takes.values()) <= set(TAKES):
            raise RecordedDataError(
                f"--fill is {fill!r}, --take {', '.join(takes.values())}; expected {', '.join(FILLS)} and "
                f"{', '.join(TAKES)}.",
                fix="Correct them.",
            )
        return cls(wait, step, cast("dict[str, Take]", takes), cast("Fill", fill), gap)

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
            RecordedDataError: An input is unknown, or cannot have values by these rules.
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
            raise RecordedDataError(error, fix="Give other values of --take and --fill.")
        return columns

    def apply(self, parts: Iterable[Rows], specs: Sequence[InputSpec]) -> tuple[Rows, int]:
        """Return the timesteps of rows, and how many rows were late. The watermark is that of each stream.

        Args:
            parts: Consecutive rows with their times in seconds; all of them are held in memory.
            specs: The inputs of the model.

        Raises:
            RecordedDataError: A time is before 1970, or a tick has no value of an input.
        """
        rows = _joined(parts)
        assert rows.times is not None
        if (rows.times < 0).any():
            raise RecordedDataError("A row has a time before 1970.", fix="Correct its time.")
        times = np.rint(rows.times * 1e6).astype(np.int64).tolist()
        return self._ticks(rows, times, specs) if self.every else self._ordered(rows, times)

    def _ordered(self, rows: Rows, times: Sequence[int]) -> tuple[Rows, int]:
        order = Order[int](self.wait)
        decided: list[Decided[int]] = []
        for row, (code, time) in enumerate(zip(rows.codes.tolist(), times, strict=True)):
            decided += order.add(str(code), str(code), time, row)
        decided += order.flush()
        kept = np.array([one.item for one in decided if not one.late], np.intp)
        found = rows.where(kept)
        return Rows(found.codes, np.arange(len(kept)), found.inputs, found.times), len(decided) - len(kept)

    def _ticks(self, rows: Rows, times: Sequence[int], specs: Sequence[InputSpec]) -> tuple[Rows, int]:
        clock = Clock[Values](self.every, self.wait, gap=self.gap, parts=_parts)
        decided: list[Tick[Values] | Late[Values]] = []
        for row, (code, time) in enumerate(zip(rows.codes.tolist(), times, strict=True)):
            item = {name: array[row] for name, array in rows.inputs.items()}
            decided += clock.add(str(code), str(code), time, item)
        decided += clock.finish()
        values = TickValues(self.columns(specs), self.fill)
        codes, numbers, made = [], [], []
        for one in decided:
            if isinstance(one, Tick) and one.pauses:
                values.forget(one.stream)
            elif isinstance(one, Tick):
                try:
                    made.append(values.of(one.stream, one.items))
                except NoValueError as exc:
                    raise RecordedDataError(
                        f"{exc}, at {one.number * self.every / 1e6:.15g} s.",
                        fix="Give --fill zero, or rows with all inputs first.",
                    ) from exc
                codes.append(int(one.stream))
                numbers.append(one.number)
        inputs: dict[str, Array] = {one.name: np.stack([each[one.name] for each in made]) for one in specs}
        seconds = np.array(numbers, np.float64) * (self.every / 1e6)
        n_late = sum(isinstance(one, Late) for one in decided)
        return Rows(np.array(codes, np.int64), np.arange(len(codes)), inputs, seconds), n_late


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
