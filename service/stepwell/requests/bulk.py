"""Turns decoded bodies into timesteps, and predictions into bulk responses, for every transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from msgspec import UNSET

from stepwell.codec import DecodedBulk, DecodedStep, Format
from stepwell.codec.responses import bulk_response, bulk_response_of_rows
from stepwell.codec.sources import source_of
from stepwell.codec.stream_lists import StreamListCache, StreamNames
from stepwell.codec.strict.tensors import pack_inputs, pack_rows
from stepwell.codec.typed_decoder import TypedStep
from stepwell.engine.engine import Engine
from stepwell.engine.stepping.outcomes import BulkOutcomes, BulkResults, StepOutcome
from stepwell.errors import ServiceError
from stepwell.models.served import ServedModel
from stepwell.requests.problems import problem_document
from stepwell.store.keys import record_key
from stepwell.types import (
    BulkPrediction,
    BulkTimesteps,
    Prediction,
    ReplyCallback,
    StreamHandle,
    StreamKey,
    Timestep,
    Transport,
)
from stepwell_client.wire.ids import decode_state_id


def to_timestep(
    step: DecodedStep, key: StreamKey, version: int | None, *, transport: Transport, idempotency_key: str | None = None
) -> Timestep:
    """Return the engine's timestep (or chunk) of a decoded body."""
    return Timestep(
        key,
        pack_inputs(step.inputs),
        step.length,
        idempotency_key=idempotency_key,
        version=version,
        transport=transport,
        **step.body.options(),
    )


def submit_typed(
    engine: Engine,
    step: TypedStep,
    handle: StreamHandle,
    done: ReplyCallback,
    *,
    served: ServedModel,
    idempotency_key: str | None = None,
) -> None:
    """Submit a single timestep that was decoded in one pass."""
    body, inputs, is_plain = step
    if is_plain and idempotency_key is None:
        seq = None if body.seq is UNSET else body.seq
        after = None if body.after is UNSET else decode_state_id(body.after)
        source = None if body.source is UNSET else source_of(body.source)
        engine.steps.submit_single(handle, inputs, seq, after, source, done, served=served)
        return
    timestep = Timestep(
        handle.key,
        inputs,
        idempotency_key=idempotency_key,
        version=handle.version,
        transport=handle.transport,
        name=handle.name,
        **body.options(),
    )
    engine.steps.submit(timestep, done, served)


def submit_columns(
    engine: Engine,
    bulk: DecodedBulk,
    version: int | None,
    done: Callable[[BulkOutcomes], None],
    *,
    stream_lists: StreamListCache,
    tenant: str,
    served: ServedModel,
    transport: Transport,
    idempotency_key: str | None = None,
) -> None:
    """Submit a bulk request, one timestep or chunk per stream; `done` gets the results once all streams have one."""
    body = bulk.body

    def make_names() -> StreamNames:
        keys = [StreamKey(tenant, served.name, stream) for stream in body.streams]
        return keys, [record_key(*key) for key in keys]

    keys, names = stream_lists.names(body.streams, tenant, make_names)
    rows = BulkTimesteps(
        keys,
        names,
        bulk.inputs,
        list(pack_rows(bulk.inputs)),
        bulk.length,
        bulk.column(body.seq),
        [after and decode_state_id(after) for after in bulk.column(body.after)],
        bulk.sources,
        idempotency_key=idempotency_key,
        version=version,
        transport=transport,
        **body.options(),
    )
    for i, fault in bulk.faults.items():
        engine.observer.refused(*keys[i], fault)
    engine.steps.submit_bulk(rows, done, served, bulk.faults)


def submit_rows(engine: Engine, timesteps: Sequence[Timestep], done: Callable[[list[StepOutcome]], None]) -> None:
    """Submit timesteps of no stream; `done` gets their results, in order, once all are there."""
    results = BulkResults(len(timesteps), lambda found: done(cast("list[StepOutcome]", found)))  # none is in columns
    for i, timestep in enumerate(timesteps):
        engine.steps.submit(timestep, partial(results.receive, i))


def bulk_document(
    bulk: DecodedBulk, results: BulkOutcomes, served: ServedModel, response_format: Format
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
