"""`ClientError`: the one exception of the client."""

from __future__ import annotations

import copyreg
from typing import Any

from stepwell_client.wire.outcomes import Applied, Retry


class ClientError(Exception):
    """A call that was rejected, that got no response in time, or whose outcome is unknown.

    Attributes:
        problem: What was found and what was expected.
        fix: What can be done about it now.
        code: One of the service's codes, or of the client's own: `no_answer`, `unreadable_answer`, `closed`,
            `bad_url`, `not_one_output`.
        applied: Whether the call or one of its retries changed the stream; "unknown" if any attempt may have.
        retry: What can be done next: repeat the call, resend the stream's inputs from `expected`, or nothing.
        step: The stream's step in the store, if the service reported it.
        expected: The next `seq` that the service accepts, if it reported it.
        state_id: The stream's state id in the store, if the service reported it.
        retry_after: Seconds to wait before a retry, if the service reported them.
        at: The stream's position of the call's source, if the service reported it.
    """

    def __init__(
        self,
        code: str,
        problem: str,
        *,
        fix: str = "",
        applied: Applied = "no",
        retry: Retry = "never",
        step: int | None = None,
        expected: int | None = None,
        state_id: str | None = None,
        retry_after: float | None = None,
        at: int | None = None,
    ) -> None:
        super().__init__(problem)
        self.code = code
        self.problem = problem
        self.fix = fix
        self.applied: Applied = applied
        self.retry: Retry = retry
        self.step = step
        self.expected = expected
        self.state_id = state_id
        self.retry_after = retry_after
        self.at = at

    def __str__(self) -> str:
        return f"{self.problem} {self.fix}" if self.fix else self.problem

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes: `Exception` would call the class with the problem alone.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # not in the stubs
