"""The ways to reach a service that the client's tests run on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepwell_client import Client

TRANSPORTS = ("http", "in process")


@contextlib.contextmanager
def engine_in_process(models: Path, **settings: Any) -> Iterator[Client]:
    """Run an engine in this process until the block ends; other clients of it take the `url` of the one returned."""
    with Client(":memory:", models=models, settings={"model_probe_s": 0, **settings}) as client:
        yield client
