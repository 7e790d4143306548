"""From a body to timesteps, and from predictions to the answer in columns; for every door that moves streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from service.api.problems import problem_of
from service.engine.engine import Engine
from service.engine.models import ServedModel
from service.engine.types import Door, Prediction, StreamKey, Timestep
from service.errors import ServiceError
from service.wire import BulkBody, Format, StepBody
from service.wire.answers import bulk_answer

Result = Prediction | ServiceError


def timestep_of(
    step: StepBody, key: StreamKey, version: int | None, *, door: Door, idempotency_key: str | None = None
) -> Timestep:
    """Return what the engine is asked for."""
    # by position: by name it takes twice the time
    return Timestep(
        key, step.inputs, step.length, step.seq, step.after, step.create, idempotency_key, step.keep, version, door
    )


def timesteps_of(
    bulk: BulkBody, tenant: str, model: str, version: int | None, *, door: Door, idempotency_key: str | None = None
) -> list[Timestep | ServiceError]:
    """Return what the engine is asked for, one per stream, or what is wrong with that row."""
    return [
        bulk.faults.get(i)
        or Timestep(
            StreamKey(tenant, model, stream),
            {name: column[i] for name, column in bulk.inputs.items()},
            length=bulk.length,
            seq=bulk.seqs[i],
            after=bulk.afters[i],
            create=bulk.create,
            idempotency_key=idempotency_key,
            keep=bulk.keep,
            version=version,
            door=door,
        )
        for i, stream in enumerate(bulk.streams)
    ]


def submit_all(
    engine: Engine, timesteps: Sequence[Timestep | ServiceError], done: Callable[[list[Result]], None]
) -> None:
    """Submit every timestep before any is awaited; `done` gets the results in order, when all are there."""
    results: list[Any] = list(timesteps)
    waiting = [i for i, timestep in enumerate(timesteps) if isinstance(timestep, Timestep)]
    left = len(waiting)
    if not left:
        done(results)
        return

    def answer(i: int) -> Callable[[Result], None]:
        def answered(result: Result) -> None:
            nonlocal left
            results[i] = result
            left -= 1
            if not left:
                done(results)

        return answered

    for i in waiting:
        engine.submit(results[i], answer(i))


def columns_answer(bulk: BulkBody, results: Sequence[Result], served: ServedModel, form: Format) -> dict[str, Any]:
    """Return the answer to columns."""
    return bulk_answer(
        [result if isinstance(result, Prediction) else None for result in results],
        {i: problem_of(result) for i, result in enumerate(results) if isinstance(result, ServiceError)},
        served.manifest.answered,
        form,
        length=bulk.length,
        chunk=bulk.chunk,
        keep=bulk.keep,
    )
