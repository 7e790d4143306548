"""`RetryPolicy`: which attempts of one call are repeated, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from stepwell_client.errors import ClientError
from stepwell_client.wire.backoff import Backoff

REPEATED_STATUSES: Final = frozenset({429, 502, 503, 504})
"""HTTP statuses after which a request is repeated if they come from a proxy; an error of the service has `retry`."""

_BACKOFF: Final = Backoff(0.05, 2.0, jitter=1)


@dataclass(slots=True)
class RetryPolicy:
    """Retries of one call.

    Attributes:
        deadline: Time of `clock` at which the call fails.
        clock: Returns the time in seconds.
        jitter: Returns a number from 0 to 1.
        failures: Attempts that failed.
        in_doubt: A failed attempt may have been applied.
    """

    deadline: float
    clock: Callable[[], float]
    jitter: Callable[[], float]
    failures: int = 0
    in_doubt: bool = False

    def pause(self, error: ClientError) -> float | None:
        """Return the seconds to wait before the next attempt; None if the error is final or the time is over."""
        if error.retry != "same":
            return None
        self.failures += 1
        pause = (error.retry_after or 0.0) + _BACKOFF.after(self.failures, self.jitter)
        return pause if self.clock() + pause < self.deadline else None

    def final_error(self, error: ClientError, *, in_doubt: bool = False) -> ClientError:
        """Return the last error; `applied` is "unknown" instead of "no" if an earlier attempt may have been applied."""
        if (in_doubt or self.in_doubt) and error.applied == "no":
            error.applied = "unknown"
        return error
