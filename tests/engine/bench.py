"""One-line arrangements for tests of the engine: workers on one store, and requests to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_export.step_model import StepModel
from service.engine.block import Results
from service.engine.engine import Engine, EngineOptions
from service.engine.models import ModelShelf
from service.engine.observer import EngineObserver
from service.engine.types import Prediction, Predictions, StreamKey, Timestep, Timesteps
from service.errors import ServiceError
from service.store.redis import StateStore
from tests.graphs import Built, write_model

FOLD = "fold"


class Counts(EngineObserver):
    """Counts what tests ask about."""

    def __init__(self) -> None:
        self.conflicted = 0
        self.regressed = 0
        self.batches: list[int] = []
        self.asked: list[str] = []  # of the store

    def conflicts(self, n: int) -> None:
        self.conflicted += n

    def regressions(self, n: int) -> None:
        self.regressed += n

    def batch(self, model: str, rows: int, seconds: float) -> None:
        self.batches.append(rows)

    def store(self, op: str, seconds: float) -> None:
        self.asked.append(op)


@contextlib.asynccontextmanager
async def worker(
    url: str, models: Path, *, options: EngineOptions | None = None, counts: Counts | None = None, **store: Any
) -> AsyncIterator[Engine]:
    """A worker's engine with every model of a folder."""
    shelf = ModelShelf([models], StepModel)
    report = await shelf.reload()
    assert not report.failed
    engine = Engine(StateStore(url, **store), shelf, options, counts)
    try:
        yield engine
    finally:
        await engine.close()


def models(folder: Path, **builds: Callable[[], Built]) -> Path:
    """Write models by name."""
    for name, build in builds.items():
        write_model(folder, name, build)
    return folder


def step(stream: str, x: int, *, model: str = FOLD, **more: Any) -> Timestep:
    """One timestep for an integer model with one input `x` of shape [1]."""
    return chunk(stream, [x], model=model, **more)


def chunk(stream: str, xs: Sequence[int], *, model: str = FOLD, **more: Any) -> Timestep:
    """Timesteps for an integer model with one input `x` of shape [1]."""
    return Timestep(StreamKey("default", model, stream), (np.array(xs, np.int64).tobytes(),), length=len(xs), **more)


def ys(prediction: Prediction) -> list[int]:
    """The predictions of a model whose output `y` has shape [1]."""
    return [int(y) for y in prediction.outputs["y"][:, 0]]


async def move_together(
    engine: Engine, rows: Mapping[str, tuple[Sequence[int], int]], **more: Any
) -> dict[str, Prediction | ServiceError] | None:
    """Move streams in columns, None where those would have to go one by one.

    Args:
        engine: The worker's.
        rows: The inputs of each stream, all equally long, and `seq`.
        more: Fields of the `Timesteps`.
    """
    keys = [StreamKey("default", FOLD, stream) for stream in rows]
    xs = np.array([xs for xs, _ in rows.values()], np.int64)[:, :, None]
    usual: dict[str, Any] = {
        "seqs": [seq for _, seq in rows.values()], "afters": [None] * len(keys), "create": "auto",
        "idempotency_key": None, "keep": "all", "version": None, "door": "websocket",
    }  # fmt: skip
    asked = Timesteps(
        keys=keys, names=[key.name for key in keys], inputs={"x": xs}, packed=[(row.tobytes(),) for row in xs],
        length=xs.shape[1], **usual | more,
    )  # fmt: skip
    answer: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
    if not engine.submit_together(asked, answer.set_result, engine.shelf.get(FOLD)):
        return None
    found = await answer
    if isinstance(found, Predictions):
        found = [Prediction(found.made, at) for at in range(len(found.made.steps))]
    return dict(zip(rows, found, strict=True))


async def refusal(engine: Engine, timestep: Timestep) -> ServiceError:
    """The error that a request is refused with."""
    try:
        found = await engine.advance(timestep)
    except ServiceError as exc:
        return exc
    raise AssertionError(f"not refused: {found}")


async def all_of(*advances: Any) -> list[Any]:
    """Await all, errors as values."""
    return await asyncio.gather(*advances, return_exceptions=True)
