"""Timesteps, and their committed results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from stepwell.errors import ServiceError
from stepwell.types.sources import BatchSources, Source
from stepwell_client.wire.outcomes import ReturnMode
from stepwell_export.runtime.manifest import Array

Create = Literal["auto", "never", "must"]
Transport = Literal["http", "websocket", "oip", "grpc"]
Lifecycle = Literal["on", "new", "last", "whole", "none"]
STARTS: Final = frozenset[Lifecycle](("new", "whole"))
"""Timesteps before which the stream is reset to the initial state."""
ENDS: Final = frozenset[Lifecycle](("last", "whole"))
"""Timesteps after which the stream is deleted."""


class StreamKey(NamedTuple):
    """The full name of a stream: tenant, model, and stream id."""

    tenant: str
    model: str
    stream: str


_SINGLE: Final = (1, "all", "on")

# One of these is created per step, and msgspec creates a struct in a quarter of the time of a NamedTuple.


class RequestFields(Struct, frozen=True, kw_only=True, gc=False):
    """What holds for every timestep of a request.

    Attributes:
        create: Whether a missing stream is created: `auto`, `never`, or `must` (the stream must be missing).
        idempotency_key: The client's key, 1 to 255 characters, or None.
        keep: Which predictions are returned, and stored for a replay: all T, the last, or none.
        version: The requested model version; None: that of the stream's record, else the default.
        transport: How it reached the service, for the metrics.
    """

    create: Create = "auto"
    idempotency_key: str | None = None
    keep: ReturnMode = "all"
    version: int | None = None
    transport: Transport = "http"


class Timestep(RequestFields, frozen=True, gc=False):
    """One request that steps one stream by one timestep or by a chunk.

    Attributes:
        key: The stream.
        inputs: Each model input's bytes, sorted by input name: `(T, *row)` of its declared dtype in C order, checked
            and finite.
        length: T, the number of timesteps; 1 or more.
        seq: Step of the first timestep, from 1 since creation or reset; None: the stream's next step.
        after: The 16 bytes of the `state_id` that the stream must have; None: any.
        lifecycle: `on`: the stream continues; `new`: it is reset before; `last`: it is deleted afterwards; `whole`:
            both; `none`: there is no stream, which only a model without state supports.
        name: Key of the stream's record, if already computed; else empty.
        source: Where the timesteps stand in their log; None: they are from none.
    """

    key: StreamKey
    inputs: tuple[bytes, ...]
    length: int = 1
    seq: int | None = None
    after: bytes | None = None
    lifecycle: Lifecycle = "on"
    name: str = ""
    source: Source | None = None

    def after_first(self, skipped: int) -> Timestep:
        """Return the request without its first timesteps."""
        if not skipped:
            return self
        inputs = tuple([packed[skipped * (len(packed) // self.length) :] for packed in self.inputs])
        return replace(self, inputs=inputs, length=self.length - skipped)

    @property
    def can_coalesce(self) -> bool:
        """Whether it may be processed in the columns of a batch of single timesteps; see `StreamHandle`.

        Those have no other fields than these, `seq`, `after` and `source`, so every other one must have its default.
        """
        return (
            self.create != "must"
            and self.idempotency_key is None
            and (self.length, self.keep, self.lifecycle) == _SINGLE
        )


class StreamHandle(Struct, frozen=True, gc=False):
    """A stream as one transport addresses it: the attributes that its single timesteps share.

    Attributes:
        key: The stream.
        name: The key of its record in the store.
        version: As a `Timestep`'s.
        transport: As a `Timestep`'s.
        create: As a `Timestep`'s, but not `must`.
    """

    key: StreamKey
    name: str
    version: int | None
    transport: Transport
    create: Create = "auto"

    def timestep(
        self, inputs: tuple[bytes, ...], seq: int | None, after: bytes | None, source: Source | None
    ) -> Timestep:
        """Return a single timestep of the stream."""
        return Timestep(
            self.key,
            inputs,
            seq=seq,
            after=after,
            create=self.create,
            version=self.version,
            transport=self.transport,
            name=self.name,
            source=source,
        )


class BulkTimesteps(RequestFields, frozen=True, gc=False):
    """The timesteps of a bulk request, each of another stream, as columns; other attributes as in `Timestep`.

    Attributes:
        keys: The streams.
        names: Keys of the streams' records.
        inputs: `(rows, T, *row)` of its declared dtype by input, checked and finite.
        packed: Each row's bytes of each input, sorted by input name.
        seqs: One per row, or None.
        afters: One per row, or None.
        sources: Where the rows' timesteps stand in their logs; None: they are from none.
    """

    keys: Sequence[StreamKey]
    names: list[str]
    inputs: Mapping[str, Array]
    packed: Sequence[tuple[bytes, ...]]
    length: int
    seqs: Sequence[int | None]
    afters: Sequence[bytes | None]
    sources: BatchSources | None = None

    def row(self, i: int) -> Timestep:
        """Return the `Timestep` of a row."""
        return Timestep(
            self.keys[i],
            self.packed[i],
            self.length,
            self.seqs[i],
            self.afters[i],
            name=self.names[i],
            source=None if self.sources is None else self.sources.row(i),
            create=self.create,
            idempotency_key=self.idempotency_key,
            keep=self.keep,
            version=self.version,
            transport=self.transport,
        )

    def select(self, indices: Sequence[int]) -> BulkTimesteps:
        """Return some of the rows."""
        at = np.asarray(indices, np.intp)
        keys, names, packed, seqs, afters = (
            [*map(column.__getitem__, indices)]
            for column in (self.keys, self.names, self.packed, self.seqs, self.afters)
        )
        return replace(
            self,
            keys=keys,
            names=names,
            inputs={name: array.take(at, axis=0) for name, array in self.inputs.items()},
            packed=packed,
            seqs=seqs,
            afters=afters,
            sources=None if self.sources is None else self.sources.select(indices),
        )

    def rows(self) -> list[Timestep]:
        """Return one `Timestep` per row."""
        return [*map(self.row, range(len(self.names)))]


class BatchOutput(Struct, eq=False):
    """The predictions of a batch, and the positions of its streams after it.

    Attributes:
        arrays: One array per returned output, `(rows, T', *row)` with T' = T, 1 or 0, depending on `keep`.
        steps: Each stream's step after it.
        state_ids: Each stream's state id after it, 16 bytes each; empty: the stream has been stepped further since.
        encoded_rows: The encoded response to each row, or empty; set by the codec, which encodes all rows in one call.
    """

    arrays: Mapping[str, Array]
    steps: Sequence[int]
    state_ids: Sequence[bytes]
    encoded_rows: Sequence[bytes] = ()


class Prediction(Struct, frozen=True, gc=False):
    """The committed result of a `Timestep`.

    Attributes:
        batch: The output of the batch that it was in.
        row: Its row in the batch.
        replayed: The request was applied before; this is the stored result.
        created: The request created the stream.
        version: The model version that computed it.
        skipped: Number of its first timesteps that were applied before, by their positions in their source.
        unknown: Number of its first timesteps whose predictions are not stored any more; they are zeros in `outputs`.
        source_changed: The stream's record keeps the position of its source in place of another source's.
        shows_version: The response has `version`: the request has a source, or another version had computed the
            stream's prediction before this one.
        versions: The version that computed each returned prediction, 0 if that is not known, if they are several; the
            last one is `version`.
    """

    batch: BatchOutput
    row: int
    replayed: bool = False
    created: bool = False
    version: int = 0
    skipped: int = 0
    unknown: int = 0
    source_changed: bool = False
    shows_version: bool = False
    versions: tuple[int, ...] = ()

    @property
    def step(self) -> int:
        """The stream's step after it."""
        return self.batch.steps[self.row]

    @property
    def state_id(self) -> bytes:
        """The stream's state id at `step`, 16 bytes."""
        return self.batch.state_ids[self.row]

    @property
    def outputs(self) -> dict[str, Array]:
        """One array per returned output, `(T', *row)`."""
        return {name: array[self.row] for name, array in self.batch.arrays.items()}


class BulkPrediction(Struct, frozen=True, gc=False):
    """The committed results of timesteps that were applied together, or the stored results of several.

    Attributes:
        batch: Their predictions; if it is the result of a whole request, in the order of the request.
        versions: The model version that computed each.
        shows_version: The response has `version`: the request has a source, or the version has changed.
        replayed: All of them were applied before; these are the stored results.
        created: Which of them created their streams, by their rows in `batch`.
    """

    batch: BatchOutput
    versions: Sequence[int]
    shows_version: bool = False
    replayed: bool = False
    created: frozenset[int] = frozenset()

    def as_parts(self) -> BulkParts:
        """Return the same as one part."""
        rows = range(len(self.batch.steps))
        return BulkParts(len(rows), [(rows, self, rows)], {})


class BulkParts(Struct):
    """The results of `BulkTimesteps` that are not one `BulkPrediction`.

    Attributes:
        n_rows: Rows of the request.
        columns: Rows with results that are columns: their indices in the request, the predictions that they are among,
            and their indices in these.
        others: The results of all other rows, by index.
    """

    n_rows: int
    columns: list[tuple[Sequence[int], BulkPrediction, Sequence[int]]]
    others: dict[int, Prediction | ServiceError]

    @property
    def errors(self) -> dict[int, ServiceError]:
        """The errors, by row."""
        return {i: result for i, result in self.others.items() if isinstance(result, ServiceError)}

    def by_row(self) -> list[Prediction | ServiceError]:
        """Return the result of each row."""
        results = dict(self.others)
        for rows, found, at in self.columns:
            for i, j in zip(rows, at, strict=True):
                position = found.batch, j, found.replayed, j in found.created, found.versions[j]
                results[i] = Prediction(*position, shows_version=found.shows_version)
        return [results[i] for i in range(self.n_rows)]


ReplyCallback = Callable[[Prediction | ServiceError], None]
"""Called exactly once per timestep, on the event loop, with its result."""
