"""`TimeRules`: how a connector reads the times of messages, orders them by these, and makes ticks of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np

from stepwell.addons.connect.config import FromSection
from stepwell.addons.connect.messages import ConnectUsageError
from stepwell.addons.event_time.tick_values import FILLS, TAKES, Fill, Take, TickColumn
from stepwell.addons.event_time.times import SECOND
from stepwell_export.runtime.durations import duration_of, in_words
from stepwell_export.runtime.manifest import InputSpec

_FORM: Final = "expected a duration such as 5s, 500ms or 1m"


@dataclass(frozen=True, slots=True)
class TimeRules:
    """The rules of a connector that orders messages by their times.

    Attributes:
        wait: How much later the newest time of a partition must be than that of a message which goes on, in us.
        idle_s: Seconds without a message of a partition after which its watermark is its newest time.
        most: Messages that wait at most.
        every: From one tick to the next, in us; 0: every message is a timestep.
        takes: Which value of several a tick has, by input; the empty name holds for those that are not named.
        fill: Which value a tick has if there is none.
        gap: Ticks in a row that are filled at most.
        suffix: The end of the source's id: the same messages by other rules are another source.
    """

    wait: int
    idle_s: float
    most: int
    every: int
    takes: dict[str, Take]
    fill: Fill
    gap: int
    suffix: str

    @classmethod
    def of(cls, section: FromSection) -> TimeRules | None:
        """Return the rules of a configuration; None: it has none.

        Raises:
            ConnectUsageError: They are incomplete, contradict each other, or have a value that is none.
        """
        if section.order is None and section.every is None:
            if section.uses_time_rules:
                raise ConnectUsageError(
                    "idle, take, fill and gap are rules of --order and --every, which are not given.",
                    fix="Give --time with --order or --every.",
                )
            return None
        if section.time is None:
            raise ConnectUsageError(
                "--order and --every need to know where a message has its time.", fix="Name the field with --time."
            )
        for name, value in (("--position", section.position), ("--seq", section.seq)):
            if value is not None:
                raise ConnectUsageError(
                    f"{name} {value} contradicts --order: there, the position of a message is its time.",
                    fix=f"Leave {name} out.",
                )
        every = 0 if section.every is None else _duration("every", section.every)
        if section.every is not None and not every:
            raise ConnectUsageError(f"--every is {section.every!r}; {_FORM}.")
        if section.fill not in FILLS:
            raise ConnectUsageError(f"--fill is {section.fill!r}; expected {', '.join(FILLS)}.")
        if section.gap < 0 or section.order_messages < 1:
            raise ConnectUsageError(
                f"--gap is {section.gap} and --order-messages {section.order_messages}; expected at least 0 and 1."
            )
        takes = {"": section.take} if isinstance(section.take, str) else section.take
        for take in takes.values():
            if take not in TAKES:
                raise ConnectUsageError(f"--take is {take!r}; expected {', '.join(TAKES)}.")
        return cls(
            every if section.order is None else _duration("order", section.order),
            _duration("idle", section.idle) / SECOND,
            section.order_messages,
            every,
            cast("dict[str, Take]", dict(takes)),
            cast("Fill", section.fill),
            section.gap,
            f"#every={in_words(every)}" if every else "#time",
        )

    def columns(self, specs: Iterable[InputSpec]) -> list[TickColumn]:
        """Return how ticks get the values of each input.

        Raises:
            ConnectUsageError: An input is unknown, or cannot have values by these rules.
        """
        found = []
        for spec in specs:
            take = self.takes.get(spec.name, self.takes.get("", "last"))
            shape = tuple(spec.shape)
            found.append(TickColumn(spec.name, np.dtype(spec.dtype), shape, take, may_be_missing=spec.missing == "nan"))
        names = [one.name for one in found]
        for name in self.takes:
            if name and name not in names:
                raise ConnectUsageError(f"--take names {name!r}; the model has the inputs {', '.join(names)}.")
        for column in found:
            error = column.error(self.fill)
            if error is not None:
                raise ConnectUsageError(error, fix="Give other values of --take and --fill.")
        return found


def follows_grid(section: FromSection) -> bool:
    """Whether ticks are as far apart as the model's timesteps, if it has that: there are times, and nothing else."""
    return section.time is not None and section.every is None and section.position is None and section.seq is None


def take_of(words: Iterable[str]) -> Any:
    """Return what `--take` says: one rule, or rules by input.

    Raises:
        ConnectUsageError: A rule for all follows another one.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, rule = word.rpartition("=")
        if not equals and "" in found:
            raise ConnectUsageError(f"--take has {found['']!r} and {rule!r} for all inputs; expected one of them.")
        found[name] = rule
    return found or "last"


def _duration(name: str, text: str) -> int:
    found = duration_of(text)
    if found is None:
        raise ConnectUsageError(f"--{name} is {text!r}; {_FORM}.")
    return found
