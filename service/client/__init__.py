"""The Python client: streams as objects, NumPy arrays in and out, safe retries.

`Client` is for scripts and threads, `AsyncClient` for asyncio; both share one protocol implementation.
"""

from __future__ import annotations

from service.client.aio import AsyncClient, AsyncModel, AsyncStream
from service.client.feed import Feed
from service.client.protocol.decoding import ModelInfo, TensorInfo
from service.client.results import ClientError, Event, Gap, Rollout, Snapshot, State, Status, StepResult
from service.client.sync import Client, Model, Stream

__all__ = [
    "AsyncClient",
    "AsyncModel",
    "AsyncStream",
    "Client",
    "ClientError",
    "Event",
    "Feed",
    "Gap",
    "Model",
    "ModelInfo",
    "Rollout",
    "Snapshot",
    "State",
    "Status",
    "StepResult",
    "Stream",
    "TensorInfo",
]
