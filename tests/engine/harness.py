"""Helpers for tests of the engine: engines that share one store, requests, and readers of results."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepwell.addons.copies.stream_copies import StreamCopies
from stepwell.engine.engine import Engine
from stepwell.engine.observer import EngineObserver
from stepwell.engine.options import EngineOptions
from stepwell.engine.publisher import Publisher
from stepwell.engine.stepping.outcomes import BulkOutcomes
from stepwell.errors import ServiceError
from stepwell.models.registry import ModelRegistry
from stepwell.store.keys import record_key
from stepwell.store.state_store import StateStore
from stepwell.types import (
    BatchSources,
    BulkParts,
    BulkPrediction,
    BulkTimesteps,
    Prediction,
    Source,
    StreamKey,
    Timestep,
)
from stepwell_export.runtime.step_model import StepModel

FOLD = "fold"


class CountingObserver(EngineObserver):
    """Records the events that tests assert on."""

    def __init__(self) -> None:
        self.conflicted = 0
        self.regressed = 0
        self.batches: list[int] = []
        self.store_ops: list[str] = []  # names of the store's operations, in order

    def conflicts(self, n: int) -> None:
        self.conflicted += n

    def regressions(self, n: int) -> None:
        self.regressed += n

    def batch_run(self, model: str, rows: int, seconds: float) -> None:
        self.batches.append(rows)

    def store_latency(self, op: str, seconds: float) -> None:
        self.store_ops.append(op)


@contextlib.asynccontextmanager
async def worker(
    url: str,
    models: Path,
    *,
    options: EngineOptions | None = None,
    counts: CountingObserver | None = None,
    publisher: Publisher | None = None,
    **store: Any,
) -> AsyncIterator[Engine]:
    """Run an engine, as one worker process does, with every model of a folder."""
    shelf = ModelRegistry([models], StepModel)
    report = await shelf.reload()
    assert not report.failed
    engine = Engine(StateStore(url, **store), shelf, options, counts, publisher=publisher)
    engine.streams.state_of_snapshot = StreamCopies(engine).state_of_snapshot
    async with closing(engine):
        yield engine


@contextlib.asynccontextmanager
async def closing(engine: Engine) -> AsyncIterator[None]:
    """Close an engine, which then has counted the end of every timestep that it has accepted."""
    try:
        yield
    finally:
        await engine.close()
    assert (engine.admission.rows, engine.admission.nbytes) == (0, 0)
    assert not any(version.in_use for version in engine.steps.versions.values())


def step(stream: str, x: int, *, model: str = FOLD, **more: Any) -> Timestep:
    """Return one timestep for an integer model with one input `x` of shape `(1,)`."""
    return chunk(stream, [x], model=model, **more)


def chunk(stream: str, xs: Sequence[int], *, model: str = FOLD, **more: Any) -> Timestep:
    """Return a chunk for an integer model with one input `x` of shape `(1,)`."""
    return Timestep(StreamKey("default", model, stream), (np.array(xs, np.int64).tobytes(),), length=len(xs), **more)


def ys(prediction: Prediction) -> list[int]:
    """Return the predictions of a model whose output `y` has shape `(1,)`."""
    return [int(y) for y in prediction.outputs["y"][:, 0]]


async def submit_bulk(
    engine: Engine,
    rows: Mapping[str, tuple[Sequence[int], int]],
    *,
    sources: Sequence[Source] = (),
    faults: Mapping[int, ServiceError] | None = None,
    **more: Any,
) -> dict[str, Prediction | ServiceError]:
    """Submit one bulk request with a row per stream.

    Args:
        engine: The engine to submit to.
        rows: By stream: its inputs, as many for each stream, and `seq`.
        sources: Where each stream's timesteps stand in their log; empty: they are from none.
        faults: Errors of rows that are not stepped.
        more: Fields of `BulkTimesteps` that differ from the usual ones.

    Returns:
        The result of each stream.
    """
    keys = [StreamKey("default", FOLD, stream) for stream in rows]
    xs = np.array([xs for xs, _ in rows.values()], np.int64)[:, :, None]
    usual: dict[str, Any] = {
        "seqs": [seq for _, seq in rows.values()], "afters": [None] * len(keys), "create": "auto",
        "idempotency_key": None, "keep": "all", "version": None, "transport": "websocket",
    }  # fmt: skip
    asked = BulkTimesteps(
        keys=keys, names=[record_key(*key) for key in keys], inputs={"x": xs}, packed=[(row.tobytes(),) for row in xs],
        length=xs.shape[1], sources=BatchSources.of(sources) if sources else None, **usual | more,
    )  # fmt: skip
    answer: asyncio.Future[BulkOutcomes] = asyncio.get_running_loop().create_future()
    engine.steps.submit_bulk(asked, answer.set_result, engine.models.get(FOLD), faults or {})
    found = await answer
    if isinstance(found, BulkPrediction):
        n = len(rows)
        found = BulkParts(n, [(range(n), found, range(n))], {})
    return dict(zip(rows, found.by_row(), strict=True))


async def expect_error(engine: Engine, timestep: Timestep) -> ServiceError:
    """Return the error that a request is rejected with."""
    try:
        found = await engine.steps.advance(timestep)
    except ServiceError as exc:
        return exc
    raise AssertionError(f"not refused: {found}")


async def gather_results(*advances: Any) -> list[Any]:
    """Await all and return results and errors, in order."""
    return await asyncio.gather(*advances, return_exceptions=True)
