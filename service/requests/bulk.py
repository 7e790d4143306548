"""From a body to timesteps, and from predictions to the answer in columns; for every door that moves streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from service.codec import BulkBody, Format, StepBody
from service.codec.responses import bulk_response, bulk_response_of_rows
from service.codec.strict_tensors import pack_inputs, pack_rows
from service.engine.engine import Engine
from service.engine.stepping.columnar_batch import BulkOutcomes, ResultGatherer, StepOutcome
from service.errors import ServiceError
from service.models.registry import ServedModel
from service.requests.problems import problem_document
from service.store.keys import record_key
from service.types import BulkPrediction, BulkTimesteps, Prediction, StreamKey, Timestep, Transport


def to_timestep(
    step: StepBody, key: StreamKey, version: int | None, *, transport: Transport, idempotency_key: str | None = None
) -> Timestep:
    """Return what the engine is asked for."""
    inputs = pack_inputs(step.inputs)
    return Timestep(
        key, inputs, step.length, step.seq, step.after, step.create, idempotency_key, step.keep, version, transport
    )


class StreamKeyCache:
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

    def get(self, streams: list[str]) -> tuple[list[StreamKey], list[str]]:
        """Return each stream's key, and where the store has it."""
        if streams != self._streams:
            self._streams = streams
            self._keys = [StreamKey(self.tenant, self._model, stream) for stream in streams]
            self._names = [record_key(*key) for key in self._keys]
        return self._keys, self._names


def submit_columns(
    engine: Engine,
    bulk: BulkBody,
    roster: StreamKeyCache,
    version: int | None,
    done: Callable[[BulkOutcomes], None],
    *,
    served: ServedModel,
    transport: Transport,
    idempotency_key: str | None = None,
) -> None:
    """Submit what columns ask for, one timestep or chunk per stream; `done` gets the answers when all are there."""
    keys, names = roster.get(bulk.streams)
    asked = BulkTimesteps(
        keys,
        names,
        bulk.inputs,
        list(pack_rows(bulk.inputs)),
        bulk.length,
        bulk.seqs,
        bulk.afters,
        bulk.create,
        idempotency_key,
        bulk.keep,
        version,
        transport,
    )
    if not bulk.faults and engine.submit_columnar(asked, done, served):
        return
    timesteps: list[Timestep | ServiceError] = [*asked.rows()]
    for i, fault in bulk.faults.items():
        timesteps[i] = fault
    submit_rows(engine, timesteps, done, served)


def submit_rows(
    engine: Engine,
    timesteps: Sequence[Timestep | ServiceError],
    done: Callable[[list[StepOutcome]], None],
    served: ServedModel | None = None,
) -> None:
    """Submit every timestep before any is awaited; `done` gets the results in order, when all are there.

    Args:
        engine: Moves the streams.
        timesteps: Of different streams; what is an error already stays one.
        done: Takes the results.
        served: As for `Engine.submit`, where it is the same for all.
    """
    gathering = ResultGatherer(timesteps, done)
    for i, timestep in enumerate(timesteps):
        if not isinstance(timestep, ServiceError):
            engine.submit(timestep, partial(gathering.receive, i), served)


def bulk_document(bulk: BulkBody, results: BulkOutcomes, served: ServedModel, form: Format) -> dict[str, Any]:
    """Return the answer to columns."""
    if isinstance(results, BulkPrediction):
        return bulk_response(results, served.manifest.answered, form, chunk=bulk.chunk, keep=bulk.keep)
    return bulk_response_of_rows(
        [result if isinstance(result, Prediction) else None for result in results],
        {i: problem_document(result) for i, result in enumerate(results) if isinstance(result, ServiceError)},
        served.manifest.answered,
        form,
        length=bulk.length,
        chunk=bulk.chunk,
        keep=bulk.keep,
    )
