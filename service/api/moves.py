"""From a body to timesteps, and from predictions to the answer in columns; for every door that moves streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from service.api.problems import problem_of
from service.engine.engine import Engine
from service.engine.models import ServedModel
from service.engine.types import Door, Prediction, StreamKey, Timestep
from service.errors import ServiceError
from service.wire import BulkBody, Format, StepBody
from service.wire.answers import bulk_answer
from service.wire.tensors import packed, packed_rows

Result = Prediction | ServiceError


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


def timesteps_of(
    bulk: BulkBody, roster: Roster, version: int | None, *, door: Door, idempotency_key: str | None = None
) -> list[Timestep | ServiceError]:
    """Return what the engine is asked for, one per stream, or what is wrong with that row."""
    length, create, keep = bulk.length, bulk.create, bulk.keep
    rows = zip(*roster.of(bulk.streams), bulk.seqs, bulk.afters, packed_rows(bulk.inputs), strict=True)
    timesteps: list[Timestep | ServiceError] = [
        Timestep(key, inputs, length, seq, after, create, idempotency_key, keep, version, door, "on", name)
        for key, name, seq, after, inputs in rows
    ]
    for i, fault in bulk.faults.items():
        timesteps[i] = fault
    return timesteps


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
    answers = _Answers(list(timesteps), done)
    waiting = [
        (timestep, partial(answers.take, i))
        for i, timestep in enumerate(timesteps)
        if not isinstance(timestep, ServiceError)
    ]
    answers.left = len(waiting)
    if not waiting:
        done(answers.results)
    for timestep, take in waiting:
        engine.submit(timestep, take, served)


class _Answers:
    """Gathers the results of timesteps that were submitted together."""

    __slots__ = ("_done", "left", "results")

    def __init__(self, results: list[Any], done: Callable[[list[Result]], None]) -> None:
        self.results = results
        self.left = 0
        self._done = done

    def take(self, i: int, result: Result) -> None:
        self.results[i] = result
        self.left -= 1
        if not self.left:
            self._done(self.results)


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
