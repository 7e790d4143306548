"""`TimeField`: the times of messages, and whether they are those of a clock that is ahead of this one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from stepwell.addons.connect.config import FromSection
from stepwell.addons.connect.mapping.paths import MISSING, FieldPath
from stepwell.addons.connect.messages import BadMessageError, ConnectError, ConnectUsageError
from stepwell.addons.event_time.times import BadTimeError, iso, time_of
from stepwell_export.runtime.durations import duration_of

_FIRST: Final = 100
"""If so many messages at the start are all ahead, one of the clocks or the unit is wrong."""


class TimeField:
    """Reads times.

    Attributes:
        path: Where a message has its time.
    """

    def __init__(self, path: str, section: FromSection, *, wall: Callable[[], float] = time.time) -> None:
        """Create it.

        Args:
            path: Where a message has its time.
            section: The `[from]` table, with the unit and with how far ahead a time may be.
            wall: Returns the seconds since 1970.

        Raises:
            ConnectUsageError: A value is wrong.
        """
        self.path = FieldPath(path)
        self._unit = section.time_unit
        ahead = duration_of(section.ahead)
        if ahead is None:
            raise ConnectUsageError(f"--ahead is {section.ahead!r}; expected a duration such as 1h or 10m.")
        self._ahead = ahead
        self._ahead_text = section.ahead
        self._wall = wall
        self._limit = 0  # until a time is above it, the clock need not be read
        self._n_ahead = 0
        self._newest = 0
        self._any_good = False

    def of(self, value: Any) -> int:
        """Return the time that a field's value is, in us since 1970.

        Raises:
            BadMessageError: `bad_time`: it is none, before 1970, or ahead of this clock.
        """
        if value is MISSING:
            raise BadMessageError("bad_time", f"the field {self.path.text!r} with the time is missing")
        try:
            found = time_of(value, self._unit)
        except BadTimeError as exc:
            raise BadMessageError("bad_time", str(exc)) from exc
        if found > self._limit:
            now = int(self._wall() * 1e6)
            self._limit = now + self._ahead
            if found > self._limit:
                error = BadMessageError(
                    "bad_time",
                    f"the time is {iso(found)}, more than {self._ahead_text} ahead of this clock, {iso(now)}",
                )
                error.time, error.is_ahead = found, True
                raise error
        self._any_good = True
        return found

    def readable(self, document: Any) -> int | None:
        """Return the time of a message that is refused for another reason, in us; None: it has none."""
        try:
            return time_of(self.path.read(document), self._unit)
        except BadTimeError:
            return None

    def count_ahead(self, found: int) -> None:
        """Note that a message was refused because its time is ahead."""
        self._n_ahead += 1
        self._newest = found

    def check_clock(self) -> None:
        """Check, before anything is done with a poll, that not all of the first messages are ahead of this clock.

        Raises:
            ConnectError: They are.
        """
        if self._n_ahead >= _FIRST and not self._any_good:
            raise ConnectError(
                f"The first {self._n_ahead} messages are all ahead of this machine's clock: the last one has the time "
                f"{iso(self._newest)}, and it is {iso(int(self._wall() * 1e6))} here.",
                fix="Check the clocks and --time-unit, or give a longer --ahead.",
            )
