"""From a body to timesteps, and from predictions to the answer in columns; for every door that moves streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from service.api.problems import problem_of
from service.engine.block import Gathering, Result, Results
from service.engine.engine import Engine
from service.engine.models import ServedModel
from service.engine.types import Door, Prediction, Predictions, StreamKey, Timestep, Timesteps
from service.errors import ServiceError
from service.wire import BulkBody, Format, StepBody
from service.wire.answers import bulk_answer, columns_of
from service.wire.tensors import packed, packed_rows


def timestep_of(
    step: StepBody, key: StreamKey, version: int | None, *, door: Door, idempotency_key: str | None = None
) -> Timestep:
    """Return what the engine is asked for."""
    inputs = packed(step.inputs)
    return Timestep(
        key, inputs, step.length, step.seq, step.after, step.create, idempotency_key, step.keep, version, door
    )


class Roster:
    """The streams that one client's columns name: mostly those that the columns before named.

    Attributes:
        tenant: Whose streams they are.
    """

    def __init__(self, tenant: str, model: str) -> None:
        """Begin with none.

        Args:
            tenant: Whose streams they are.
            model: The model's name.
        """
        self.tenant = tenant
        self._model = model
        self._streams: list[str] = []
        self._keys: list[StreamKey] = []
        self._names: list[str] = []

    def of(self, streams: list[str]) -> tuple[list[StreamKey], list[str]]:
        """Return each stream's key, and where the store has it."""
        if streams != self._streams:
            self._streams = streams
            self._keys = [StreamKey(self.tenant, self._model, stream) for stream in streams]
            self._names = [key.name for key in self._keys]
        return self._keys, self._names


def submit_columns(
    engine: Engine,
    bulk: BulkBody,
    roster: Roster,
    version: int | None,
    done: Callable[[Results], None],
    *,
    served: ServedModel,
    door: Door,
    idempotency_key: str | None = None,
) -> None:
    """Submit what columns ask for, one timestep or chunk per stream; `done` gets the answers when all are there."""
    keys, names = roster.of(bulk.streams)
    asked = Timesteps(
        keys,
        names,
        bulk.inputs,
        list(packed_rows(bulk.inputs)),
        bulk.length,
        bulk.seqs,
        bulk.afters,
        bulk.create,
        idempotency_key,
        bulk.keep,
        version,
        door,
    )
    if not bulk.faults and engine.submit_together(asked, done, served):
        return
    timesteps: list[Timestep | ServiceError] = [*asked.each()]
    for i, fault in bulk.faults.items():
        timesteps[i] = fault
    submit_all(engine, timesteps, done, served)


def submit_all(
    engine: Engine,
    timesteps: Sequence[Timestep | ServiceError],
    done: Callable[[list[Result]], None],
    served: ServedModel | None = None,
) -> None:
    """Submit every timestep before any is awaited; `done` gets the results in order, when all are there.

    Args:
        engine: Moves the streams.
        timesteps: Of different streams; what is an error already stays one.
        done: Takes the results.
        served: As for `Engine.submit`, where it is the same for all.
    """
    gathering = Gathering(timesteps, done)
    for i, timestep in enumerate(timesteps):
        if not isinstance(timestep, ServiceError):
            engine.submit(timestep, partial(gathering.take, i), served)


def columns_answer(bulk: BulkBody, results: Results, served: ServedModel, form: Format) -> dict[str, Any]:
    """Return the answer to columns."""
    if isinstance(results, Predictions):
        return columns_of(results, served.manifest.answered, form, chunk=bulk.chunk, keep=bulk.keep)
    return bulk_answer(
        [result if isinstance(result, Prediction) else None for result in results],
        {i: problem_of(result) for i, result in enumerate(results) if isinstance(result, ServiceError)},
        served.manifest.answered,
        form,
        length=bulk.length,
        chunk=bulk.chunk,
        keep=bulk.keep,
    )
