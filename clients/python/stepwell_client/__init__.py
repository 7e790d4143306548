"""The Python client: streams as objects, NumPy arrays in and out, safe retries.

`Client` is for scripts and threads, `AsyncClient` for asyncio; both share one protocol implementation. Each name is
imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwell_client.aio import AsyncClient, AsyncModel, AsyncStream
    from stepwell_client.errors import ClientError
    from stepwell_client.feed import Feed
    from stepwell_client.protocol.decoding import ModelInfo, TensorInfo
    from stepwell_client.results import (
        Event,
        Gap,
        PackedState,
        Rollout,
        RolloutTimestep,
        RunResult,
        Snapshot,
        State,
        Status,
        StepResult,
    )
    from stepwell_client.sync import Client, Model, Stream

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
    "PackedState",
    "Rollout",
    "RolloutTimestep",
    "RunResult",
    "Snapshot",
    "State",
    "Status",
    "StepResult",
    "Stream",
    "TensorInfo",
]

_HOMES = {
    **dict.fromkeys(("AsyncClient", "AsyncModel", "AsyncStream"), "aio"),
    **dict.fromkeys(("Client", "Model", "Stream"), "sync"),
    **dict.fromkeys(("Event", "Gap", "Rollout", "Snapshot", "State", "Status", "StepResult"), "results"),
    **dict.fromkeys(("PackedState", "RolloutTimestep", "RunResult"), "results"),
    **dict.fromkeys(("ModelInfo", "TensorInfo"), "protocol.decoding"),
    "ClientError": "errors",
    "Feed": "feed",
}


if not TYPE_CHECKING:  # else a type checker would accept every name

    def __getattr__(name: str) -> Any:
        """Import what is used when it is used."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return found
