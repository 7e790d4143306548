"""Limits of one tenant: timesteps per second in a worker, and live streams. Does no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from stepwell.errors import ServiceError
from stepwell_client.wire.texts import counted

_MAX_BUCKETS = 10_000  # stored buckets; a full bucket can be dropped, since a new one is full too


class _Bucket:
    """The tokens of a tenant at a time."""

    __slots__ = ("tokens", "updated_at")

    def __init__(self, tokens: float, updated_at: float) -> None:
        self.tokens = tokens
        self.updated_at = updated_at


class TenantRates:
    """A token bucket per tenant: a burst of one second's timesteps, then as many as the rate allows.

    A chunk of more than one second's timesteps needs a full bucket, whose tokens then become negative. Each worker has
    its own buckets.
    """

    def __init__(self, rate: float) -> None:
        """Create it with full buckets.

        Args:
            rate: Timesteps per second.
        """
        self._rate = rate
        self._burst = max(rate, 1.0)
        self._buckets: dict[str, _Bucket] = {}

    def acquire(self, tenant: str, n: int, now: float) -> None:
        """Remove tokens from a tenant's bucket.

        Args:
            tenant: The tenant.
            n: Number of tokens: of timesteps, or 1 for any other request.
            now: Time on the monotonic clock, in seconds.

        Raises:
            ServiceError: `rate_limited`; no tokens were removed.
        """
        bucket = self._buckets.get(tenant)
        if bucket is None:
            if len(self._buckets) >= _MAX_BUCKETS:
                self._evict_full(now)
            bucket = self._buckets[tenant] = _Bucket(self._burst, now)
        elif bucket.updated_at != now:  # most timesteps arrive in the same iteration of the event loop as others
            bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.updated_at) * self._rate)
            bucket.updated_at = now
        if bucket.tokens < n and bucket.tokens < self._burst:
            raise ServiceError(
                "rate_limited",
                f"The tenant sends more than {self._rate:g} timesteps per second to this worker.",
                fix="Send the same request again after Retry-After, and send fewer at once.",
                retry_after_s=(min(n, self._burst) - bucket.tokens) / self._rate,
            )
        bucket.tokens -= n

    def try_acquire(self, tenant: str, n: int, now: float) -> bool:
        """Remove tokens from a tenant's bucket if it has so many; the arguments are those of `acquire`."""
        if n > self._burst:
            return False
        try:
            self.acquire(tenant, n, now)
        except ServiceError:
            return False
        return True

    def _evict_full(self, now: float) -> None:
        rate = self._rate
        full = [
            name
            for name, bucket in self._buckets.items()
            if bucket.tokens + (now - bucket.updated_at) * rate >= self._burst
        ]
        for name in full:
            del self._buckets[name]


class StreamQuota:
    """Limits the number of streams of each tenant.

    The streams in the store are counted from time to time; in between, each worker adds the streams that it creates. So
    the limit is exact for one worker and streams that are not deleted, and otherwise off by the streams created or
    deleted since the last count.

    `check` reserves room for a stream; once it is known whether the stream was created, `confirm` or `release` follows.
    """

    def __init__(self, max_streams: int) -> None:
        """Create it with all counts at zero.

        Args:
            max_streams: Most streams of one tenant.
        """
        self._max_streams = max_streams
        self._counted: Mapping[str, int] = {}
        self._reserved: Counter[str] = Counter()  # it is not known yet whether these streams are created
        self._created: Counter[str] = Counter()  # since the last count, or while it ran
        self._created_during_count: Counter[str] = Counter()
        self.needs_recount = True
        """Whether streams may have been created or deleted since the last count."""

    def check(self, tenant: str) -> None:
        """Reserve room for one stream.

        Raises:
            ServiceError: `stream_quota`.
        """
        self.needs_recount = True  # if there is no room: streams may have expired since the last count
        n_streams = self._counted.get(tenant, 0) + self._created[tenant] + self._reserved[tenant]
        if n_streams >= self._max_streams:
            raise ServiceError(
                "stream_quota",
                f"The tenant has {counted(n_streams, 'stream')}; at most {self._max_streams} are allowed.",
                fix="Delete streams, or wait until idle ones have expired.",
            )
        self._reserved[tenant] += 1

    def confirm(self, tenant: str) -> None:
        """Count a stream that was created, or may have been: the next count corrects it."""
        self.release(tenant)
        self.needs_recount = True
        self._created[tenant] += 1
        self._created_during_count[tenant] += 1

    def release(self, tenant: str) -> None:
        """Release the room of a stream that was not created."""
        self._reserved[tenant] -= 1
        if not self._reserved[tenant]:
            del self._reserved[tenant]

    def begin_count(self) -> None:
        """Prepare for a count of the store that starts now."""
        self.needs_recount = False
        self._created_during_count.clear()

    def set_counts(self, streams: Mapping[str, int]) -> None:
        """Set the counts by tenant; streams created during the count are added, though it may have counted them too."""
        self._counted = streams
        self._created, self._created_during_count = self._created_during_count, Counter()


class Reservation:
    """Room for one stream of a tenant while it is not known whether the stream will be created."""

    def __init__(self, quota: StreamQuota | None, tenant: str) -> None:
        """Reserve nothing yet.

        Args:
            quota: Limits the streams of each tenant; None: no limit.
            tenant: The tenant.
        """
        self._quota = quota
        self._tenant = tenant
        self._is_taken = False

    def take(self) -> None:
        """Reserve the room, unless it is reserved already.

        Raises:
            ServiceError: `stream_quota`.
        """
        if self._quota is not None and not self._is_taken:
            self._quota.check(self._tenant)
            self._is_taken = True

    def end(self, *, begun: bool) -> None:
        """Release the room, unless the stream was created, or may have been."""
        if self._quota is not None and self._is_taken:
            self._is_taken = False
            (self._quota.confirm if begun else self._quota.release)(self._tenant)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.end(begun=error is not None and not (isinstance(error, ServiceError) and error.applied == "no"))
