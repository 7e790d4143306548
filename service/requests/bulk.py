"""Turns decoded bodies into timesteps, and predictions into bulk responses, for every transport."""

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
    """Return the engine's timestep (or chunk) of a decoded body."""
    inputs = pack_inputs(step.inputs)
    return Timestep(
        key, inputs, step.length, step.seq, step.after, step.create, idempotency_key, step.keep, version, transport
    )


class StreamKeyCache:
    """Keys and record names of the streams of a client's last bulk request; the next one mostly has the same streams.

    Attributes:
        tenant: The owner of the streams.
    """

    def __init__(self, tenant: str, model: str) -> None:
        self.tenant = tenant
        self._model = model
        self._streams: list[str] = []
        self._keys: list[StreamKey] = []
        self._names: list[str] = []

    def get(self, streams: list[str]) -> tuple[list[StreamKey], list[str]]:
        """Return each stream's key, and the name of its record in the store."""
        if streams != self._streams:
            self._streams = streams
            self._keys = [StreamKey(self.tenant, self._model, stream) for stream in streams]
            self._names = [record_key(*key) for key in self._keys]
        return self._keys, self._names


def submit_columns(
    engine: Engine,
    bulk: BulkBody,
    stream_keys: StreamKeyCache,
    version: int | None,
    done: Callable[[BulkOutcomes], None],
    *,
    served: ServedModel,
    transport: Transport,
    idempotency_key: str | None = None,
) -> None:
    """Submit a bulk request, one timestep or chunk per stream; `done` gets the results once all streams have one."""
    keys, names = stream_keys.get(bulk.streams)
    rows = BulkTimesteps(
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
    if not bulk.faults and engine.steps.submit_columnar(rows, done, served):
        return
    timesteps: list[Timestep | ServiceError] = [*rows.rows()]
    for i, fault in bulk.faults.items():
        timesteps[i] = fault
    submit_rows(engine, timesteps, done, served)


def submit_rows(
    engine: Engine,
    timesteps: Sequence[Timestep | ServiceError],
    done: Callable[[list[StepOutcome]], None],
    served: ServedModel | None = None,
) -> None:
    """Submit all timesteps; `done` gets their results, in order, once all are there.

    Args:
        engine: Applies the timesteps.
        timesteps: Timesteps of different streams; an error in place of a timestep becomes its result.
        done: Called once, with one result per timestep.
        served: As for `StepService.submit`, if it is the same for all timesteps.
    """
    gatherer = ResultGatherer(timesteps, done)
    for i, timestep in enumerate(timesteps):
        if not isinstance(timestep, ServiceError):
            engine.steps.submit(timestep, partial(gatherer.receive, i), served)


def bulk_document(
    bulk: BulkBody, results: BulkOutcomes, served: ServedModel, response_format: Format
) -> dict[str, Any]:
    """Return the response to a bulk request."""
    if isinstance(results, BulkPrediction):
        return bulk_response(results, served.manifest.answered, response_format, chunk=bulk.chunk, keep=bulk.keep)
    return bulk_response_of_rows(
        [result if isinstance(result, Prediction) else None for result in results],
        {i: problem_document(result) for i, result in enumerate(results) if isinstance(result, ServiceError)},
        served.manifest.answered,
        response_format,
        length=bulk.length,
        chunk=bulk.chunk,
        keep=bulk.keep,
    )
