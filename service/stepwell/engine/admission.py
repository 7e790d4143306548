"""Which requests are accepted. Does no I/O.

`RequestAdmission`: by the number and the bytes of those that have no response yet; `QueueAdmission`: by how fast the
queue of a model drains.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from stepwell.engine.options import EngineOptions
from stepwell.engine.tenant_limits import TenantRates
from stepwell.errors import ServiceError

_WINDOW_S: Final = 1.0
_MIN_SAMPLED_S: Final = 0.4  # timesteps must have waited this long without a break before a rate is computed
_MIN_ROWS: Final = 16  # timesteps that may always wait


class RequestAdmission:
    """Limits the requests of one worker: by their number and bytes, and by the rate of each tenant.

    Attributes:
        draining: Whether new requests are rejected, because this worker is about to end.
        rows: Timesteps and rollouts that were accepted and have not ended: their batches, of timesteps.
        nbytes: Bytes of their inputs.
        queue_limit: Timesteps and rollouts that may wait.
        max_bytes: Bytes from which on no more requests are accepted.
        quick_limit: With fewer open timesteps, one more is accepted without a closer check; 0: each is checked.
        rates: Limits the timesteps per second of each tenant; None: no limit.
    """

    def __init__(self, options: EngineOptions, *, n_waiting: Callable[[], int]) -> None:
        """Start with no open request.

        Args:
            options: The limits.
            n_waiting: Returns how many timesteps and rollouts wait.
        """
        self.draining = False
        self.rows = 0
        self.nbytes = 0
        self.queue_limit = options.queue_limit
        self.max_bytes = options.queue_bytes
        self.quick_limit = self.queue_limit
        self.rates = None if options.tenant_rate is None else TenantRates(options.tenant_rate)
        self._timeout_s = options.request_timeout_s
        self._n_waiting = n_waiting
        self._idle = asyncio.Event()

    def check(self) -> None:
        """Check that one more request can be accepted.

        Raises:
            ServiceError: `draining` or `overloaded`.
        """
        if self.draining:
            raise ServiceError(
                "draining",
                "This process is about to end and accepts no new requests.",
                fix="Send the same request to another replica.",
            )
        waiting = self._n_waiting()
        if waiting >= self.queue_limit:
            raise ServiceError(
                "overloaded",
                f"{waiting} timesteps and rollouts are waiting; the limit is {self.queue_limit}.",
                fix="Send the same request again after a pause.",
            )
        if self.nbytes >= self.max_bytes:
            raise ServiceError(
                "overloaded",
                f"{self.nbytes} bytes of inputs are waiting or running; the limit is {self.max_bytes}.",
                fix="Send the same request again after a pause.",
            )

    def check_rate(self, tenant: str, timesteps: int = 1) -> None:
        """Count timesteps towards a tenant's rate; a request that steps no stream counts as one.

        Raises:
            ServiceError: `rate_limited`.
        """
        if self.rates is not None:
            self.rates.acquire(tenant, timesteps, time.monotonic())

    def start(self) -> float:
        """Return the deadline of a request that starts now, on the loop's clock.

        Raises:
            ServiceError: `draining` or `overloaded`.
        """
        self.check()
        return self.deadline()

    def deadline(self) -> float:
        """Return the deadline of a request that is received now, on the loop's clock."""
        return asyncio.get_running_loop().time() + self._timeout_s

    def count_answered(self, rows: int, nbytes: int) -> None:
        """Count requests that have ended, and the bytes of their inputs."""
        self.rows -= rows
        self.nbytes -= nbytes
        self.end_drain()

    def end_drain(self) -> None:
        """End `drain` if no request is open."""
        if not self.rows:
            self._idle.set()

    async def drain(self, timeout: float) -> None:
        """Reject new requests, and wait until the accepted ones have their response, at most `timeout` seconds."""
        self.draining = True
        self._idle.clear()
        if self.rows:
            try:
                async with asyncio.timeout(timeout):
                    await self._idle.wait()
            except TimeoutError:
                pass


class QueueAdmission:
    """Bounds a queue so that a timestep waits at most `max_wait_s` in it.

    Under overload, a queue that is bounded by its length alone fills up, and each timestep waits for long, possibly
    until its deadline. If the queue is bounded by waiting time, the excess is rejected at once.

    Attributes:
        max_rows: Timesteps that may wait; infinite: no limit.
    """

    def __init__(self, max_wait_s: float) -> None:
        """Start without a limit.

        Args:
            max_wait_s: Seconds that a timestep should wait at most.
        """
        self._max_wait = max_wait_s
        self._samples: deque[tuple[float, int]] = deque()  # time and responses so far, while timesteps waited
        self.max_rows: float = math.inf

    def sample(self, now: float, waiting: int, answered: int) -> None:
        """Update the limit; to be called several times a second.

        Args:
            now: Seconds, on any clock.
            waiting: Timesteps that wait.
            answered: Timesteps that have got a response since the start.
        """
        samples = self._samples
        if not waiting:
            samples.clear()
            self.max_rows = math.inf
            return
        samples.append((now, answered))
        while len(samples) > 2 and samples[1][0] <= now - _WINDOW_S:
            samples.popleft()
        oldest_time, oldest_answered = samples[0]
        if now - oldest_time < _MIN_SAMPLED_S:
            return
        # If there are no responses at all, the cause is not the load; waiting timesteps then get the actual error.
        rate = (answered - oldest_answered) / (now - oldest_time)
        self.max_rows = max(_MIN_ROWS, rate * self._max_wait) if rate else math.inf

    def check(self, waiting: int) -> None:
        """Check that one more timestep may wait.

        Raises:
            ServiceError: `overloaded`, with the seconds until one more may wait.
        """
        limit = self.max_rows  # read once: another thread writes it
        if waiting >= limit:
            raise ServiceError(
                "overloaded",
                f"{waiting} timesteps are waiting for this model; it can process {limit:.0f} in time.",
                fix="Send the same request again after a pause.",
                retry_after_s=(waiting - limit) / (limit / self._max_wait),
            )
