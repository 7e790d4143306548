"""What one tenant may take of a worker: timesteps a second, and live streams. Does no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from service.errors import ServiceError

_MAX_BUCKETS = 10_000  # tenants whose buckets are kept; a full bucket need not be


class _Bucket:
    """What a tenant may still take, and when that was."""

    __slots__ = ("tokens", "updated_at")

    def __init__(self, left: float, then: float) -> None:
        self.tokens = left
        self.updated_at = then


class TenantRates:
    """A token bucket for each tenant: a second's worth may come at once, then as many as the rate allows.

    What is longer than a second's worth is let in by a full bucket, which then owes the rest. Buckets are each
    worker's own.
    """

    def __init__(self, rate: float) -> None:
        """Begin with full buckets.

        Args:
            rate: Timesteps a second.
        """
        self._rate = rate
        self._burst = max(rate, 1.0)
        self._buckets: dict[str, _Bucket] = {}

    def acquire(self, tenant: str, n: int, now: float) -> None:
        """Take from a tenant's bucket.

        Args:
            tenant: Whose.
            n: Timesteps, or 1 for any other request.
            now: The loop's clock.

        Raises:
            ServiceError: `rate_limited`; nothing was taken.
        """
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._new_bucket(tenant, now)
        elif bucket.updated_at != now:  # most timesteps come in the same turn of the loop as others
            bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.updated_at) * self._rate)
            bucket.updated_at = now
        if bucket.tokens < n and bucket.tokens < self._burst:
            raise ServiceError(
                "rate_limited",
                f"The tenant sends more than {self._rate:g} timesteps a second to this worker.",
                fix="Send the same request again after Retry-After, and fewer at once.",
                retry_after_s=(min(n, self._burst) - bucket.tokens) / self._rate,
            )
        bucket.tokens -= n

    def try_acquire(self, tenant: str, n: int, now: float) -> bool:
        """Take from a tenant's bucket if it has that much; arguments as for `demand`."""
        if n > self._burst:
            return False
        try:
            self.acquire(tenant, n, now)
        except ServiceError:
            return False
        return True

    def _new_bucket(self, tenant: str, now: float) -> _Bucket:
        if len(self._buckets) >= _MAX_BUCKETS:
            self._evict_full(now)
        bucket = self._buckets[tenant] = _Bucket(self._burst, now)
        return bucket

    def _evict_full(self, now: float) -> None:
        rate = self._rate
        full = [
            name for name, one in self._buckets.items() if one.tokens + (now - one.updated_at) * rate >= self._burst
        ]
        for name in full:
            del self._buckets[name]


class StreamQuota:
    """How many streams each tenant has, and whether one more may begin.

    The store is counted every now and then; in between, each worker adds what it lets begin. So the limit holds
    exactly for one worker and streams that stay, and otherwise to what began or went since the last count.

    A stream that may begin takes room with `demand`; once it is known what became of it, `confirm` or `release`
    follows.
    """

    def __init__(self, most: int) -> None:
        """Begin before the first count, when there is room for everyone.

        Args:
            most: Streams of one tenant.
        """
        self._max_streams = most
        self._counted: Mapping[str, int] = {}
        self._open: Counter[str] = Counter()  # of which it is not known yet whether they begin
        self._begun: Counter[str] = Counter()  # since the last count, or while it went on
        self._begun_meanwhile: Counter[str] = Counter()
        self.needs_recount = True
        """Whether something happened since the last count that another one would tell."""

    def check(self, tenant: str) -> None:
        """Take room for one stream.

        Raises:
            ServiceError: `stream_quota`.
        """
        self.needs_recount = True  # where there is none, streams may have expired since the last count
        there = self._counted.get(tenant, 0) + self._begun[tenant] + self._open[tenant]
        if there >= self._max_streams:
            raise ServiceError(
                "stream_quota",
                f"The tenant has {there} streams; at most {self._max_streams} are taken.",
                fix="Delete streams, or wait until idle ones have gone.",
            )
        self._open[tenant] += 1

    def confirm(self, tenant: str) -> None:
        """Count a stream that has begun, or that may have: the next count corrects it."""
        self.release(tenant)
        self.needs_recount = True
        self._begun[tenant] += 1
        self._begun_meanwhile[tenant] += 1

    def release(self, tenant: str) -> None:
        """Give back the room of a stream that has not begun."""
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant]

    def begin_count(self) -> None:
        """Hear that a count of the store begins."""
        self.needs_recount = False
        self._begun_meanwhile.clear()

    def set_counts(self, streams: Mapping[str, int]) -> None:
        """Take the streams by tenant that a count found; what began meanwhile may be among them, and is added."""
        self._counted = streams
        self._begun, self._begun_meanwhile = self._begun_meanwhile, Counter()


class Reservation:
    """Room for one stream of a tenant while it is not known whether the stream begins; given back at the end."""

    def __init__(self, quota: StreamQuota | None, tenant: str) -> None:
        """Begin with none.

        Args:
            quota: Of the streams that a tenant may have; None: as many as it likes.
            tenant: Whose.
        """
        self._quota = quota
        self._tenant = tenant
        self._is_taken = False

    def take(self) -> None:
        """Take it, if it is not yet.

        Raises:
            ServiceError: `stream_quota`.
        """
        if self._quota is not None and not self._is_taken:
            self._quota.check(self._tenant)
            self._is_taken = True

    def end(self, *, begun: bool) -> None:
        """Give it back, unless the stream has begun, or may have."""
        if self._quota is not None and self._is_taken:
            self._is_taken = False
            (self._quota.confirm if begun else self._quota.release)(self._tenant)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.end(begun=error is not None and not (isinstance(error, ServiceError) and error.applied == "no"))
