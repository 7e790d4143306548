"""`EngineOptions`: the options of the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of the engine; those that have the name of a setting have its meaning and its default.

    Attributes:
        max_batch_size: Maximum number of rows in one run.
        max_wait_s: Seconds that a timestep may wait for others to join its batch.
        queue_limit: Timesteps that may wait, over all models.
        queue_bytes: Bytes of inputs that may wait or run, over all models. Below the limit, one more request is
            accepted, whatever its size.
        request_timeout_s: Seconds from receipt to response.
        run_timeout_s: Seconds that one model run may take.
        cache_bytes: Memory for recently used records.
        tenant_rate: Timesteps per second of one tenant; None: no limit.
        tenant_max_streams: Live streams of one tenant; None: no limit.
        snapshot_ttl_s: Time to live of a stream's snapshots after the last use of one of them, in seconds; None: that
            of idle streams.
        max_snapshots: Snapshots that a stream may have.
    """

    max_batch_size: int = 256
    max_wait_s: float = 0.0
    queue_limit: int = 10_000
    queue_bytes: int = 256 * 2**20
    request_timeout_s: float = 10.0
    run_timeout_s: float = 5.0
    cache_bytes: int = 256 * 2**20
    tenant_rate: float | None = None
    tenant_max_streams: int | None = None
    snapshot_ttl_s: float | None = None
    max_snapshots: int = 16
