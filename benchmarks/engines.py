"""Engines in this process without a transport, on a private store: what `pairs` and `engine_drift` step."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepwell.addons.embedded_store.server import EmbeddedStore
from stepwell.engine.engine import Engine
from stepwell.store.keys import record_key
from stepwell.types import BulkTimesteps, StreamKey
from stepwell_export.runtime.manifest import Array

MODEL, ROWS = "bench", 256


@contextlib.contextmanager
def private_store(folder: Path) -> Iterator[str]:
    """Run the embedded store on a folder until the block ends; the result is its URL."""
    store = EmbeddedStore(folder)
    store.start()
    try:
        yield store.url
    finally:
        store.stop()


async def step(engine: Engine, tenant: str, xs: Array, seq: int) -> None:
    """Step all streams of a tenant by one timestep, in columns; `xs` is the model's input, `(ROWS, features)`."""
    served = engine.models.get(MODEL, 1)
    keys = [StreamKey(tenant, MODEL, f"s{i}") for i in range(ROWS)]
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    bulk = BulkTimesteps(
        keys=keys, names=[record_key(*key) for key in keys], inputs={served.inputs[0].name: xs[:, None]},
        packed=[(row.tobytes(),) for row in xs], length=1, seqs=[seq] * ROWS, afters=[None] * ROWS,
    )  # fmt: skip
    engine.steps.submit_bulk(bulk, done.set_result, served)
    await done
