"""Immutable values that transports, engine and store exchange; no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct

from model_export.manifest import Array
from service.errors import ServiceError

Create = Literal["auto", "never", "must"]
ReturnMode = Literal["all", "last", "none"]
Transport = Literal["http", "websocket", "oip"]
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
    """

    key: StreamKey
    inputs: tuple[bytes, ...]
    length: int = 1
    seq: int | None = None
    after: bytes | None = None
    lifecycle: Lifecycle = "on"
    name: str = ""

    @property
    def can_coalesce(self) -> bool:
        """Whether it may be processed in the columns of a batch of single timesteps; see `StreamHandle`."""
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

    def timestep(self, inputs: tuple[bytes, ...], seq: int | None, after: bytes | None) -> Timestep:
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
    """

    keys: Sequence[StreamKey]
    names: list[str]
    inputs: Mapping[str, Array]
    packed: Sequence[tuple[bytes, ...]]
    length: int
    seqs: Sequence[int | None]
    afters: Sequence[bytes | None]

    def rows(self) -> list[Timestep]:
        """Return one `Timestep` per row."""
        shared = {name: getattr(self, name) for name in RequestFields.__struct_fields__}
        rows = zip(self.keys, self.packed, self.seqs, self.afters, self.names, strict=True)
        return [
            Timestep(stream, inputs, self.length, seq, after, name=name, **shared)
            for stream, inputs, seq, after, name in rows
        ]


class BatchOutput:
    """The predictions of a batch, and the positions of its streams after it.

    Attributes:
        arrays: One array per returned output, `(rows, T', *row)` with T' = T, 1 or 0, depending on `keep`.
        steps: Each stream's step after it.
        state_ids: Each stream's state id after it, 16 bytes each.
        encoded_rows: The encoded response to each row, or empty; set by the codec, which encodes all rows in one call.
    """

    __slots__ = ("arrays", "encoded_rows", "state_ids", "steps")

    def __init__(self, arrays: Mapping[str, Array], steps: Sequence[int], state_ids: Sequence[bytes]) -> None:
        self.arrays = arrays
        self.steps = steps
        self.state_ids = state_ids
        self.encoded_rows: Sequence[bytes] = ()


class Prediction(Struct, frozen=True, gc=False):
    """The committed result of a `Timestep`.

    Attributes:
        batch: The output of the batch that it was in.
        row: Its row in the batch.
        replayed: The request was applied before; this is the stored result.
        created: The request created the stream.
        version: The model version that computed it.
    """

    batch: BatchOutput
    row: int
    replayed: bool = False
    created: bool = False
    version: int = 0

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
    """The committed results of `BulkTimesteps`, all applied now, to streams that existed.

    Attributes:
        batch: Their predictions, in the order of the request.
        version: The model version that computed them.
    """

    batch: BatchOutput
    version: int


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """The status of a stream.

    Attributes:
        key: The stream.
        version: Model version that wrote the state, None if it is not loaded here.
        step: Timesteps since creation or reset.
        state_id: 16 bytes.
        created_ms: Milliseconds since the Unix epoch.
        updated_ms: Milliseconds since the Unix epoch.
        expires_in_ms: Milliseconds until the stream expires if it stays idle.
        outputs: The last stored prediction, `*row` by name; empty if there is none, or its model is not loaded here.
    """

    key: StreamKey
    version: int | None
    step: int
    state_id: bytes
    created_ms: int
    updated_ms: int
    expires_in_ms: int
    outputs: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """The position of a stream after a reset, a fork or an import of a state; or the position in a snapshot.

    Attributes:
        step: 0, or that of the snapshot, of the other stream, or of the imported state.
        state_id: 16 bytes.
        replayed: The request was applied before; this is the stored result.
    """

    step: int
    state_id: bytes
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class ImportedState:
    """An imported state, checked: one row per state of the model, its declared dtype, finite.

    Attributes:
        states: `*row` by name.
        step: The stream's step from then on.
    """

    states: Mapping[str, Array]
    step: int


@dataclass(frozen=True, slots=True)
class StreamState:
    """The state of a stream.

    Attributes:
        states: One row per state of the model, `*row` by name.
        step: Timesteps since creation or reset.
        fingerprint: Fingerprint of the model that wrote it, 8 bytes.
    """

    states: Mapping[str, Array]
    step: int
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    """The status of a snapshot.

    Attributes:
        name: Its name.
        version: Model version that wrote the state, None if it is not loaded here.
        step: The stream's step in the snapshot.
        state_id: The stream's state id in the snapshot, 16 bytes.
        taken_ms: When it was created, milliseconds since the Unix epoch.
    """

    name: str
    version: int | None
    step: int
    state_id: bytes
    taken_ms: int


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """A request to run a stream from its current state by the model's own predictions.

    Attributes:
        key: The stream.
        horizon: Number of timesteps.
        inputs: The given first inputs, `*row` by name, checked and finite.
        feedback: A rule by input; None: the model's own rules.
        temperature: Overrides that of the rules; likewise `top_k` and `top_p`.
        samples: Number of independent samples.
        seed: Seed of the random draws, from 0 to below 2**64; None: a random one.
        commit: Commit the rollout to the stream.
        seq: As in `Timestep`; likewise the attributes that follow.
    """

    key: StreamKey
    horizon: int
    inputs: Mapping[str, Array]
    feedback: Mapping[str, Any] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    samples: int = 1
    seed: int | None = None
    commit: bool = False
    seq: int | None = None
    after: bytes | None = None
    create: Create = "auto"
    idempotency_key: str | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """The result of a rollout.

    Attributes:
        outputs: A prediction per timestep, `(samples, horizon, *row)` by name.
        next_inputs: The inputs computed from each prediction by the feedback rules, `(samples, horizon, *row)` by
            name.
        seed: Seed of the random draws; None if the rollout is deterministic.
        step: The stream's step after a committed rollout; otherwise the step that it would have.
        state_id: The stream's state id: after a committed rollout, else unchanged; empty if there is no stream.
        replayed: The rollout was committed before; this is the stored result.
        created: The request created the stream.
    """

    outputs: Mapping[str, Array]
    next_inputs: Mapping[str, Array]
    seed: int | None
    step: int
    state_id: bytes
    replayed: bool = False
    created: bool = False


@dataclass(frozen=True, slots=True)
class StreamList:
    """One page of a listing: `(stream, step)` pairs, and the cursor of the next page, None at the end.

    The step is None if the stream's record cannot be read.
    """

    streams: list[tuple[str, int | None]] = field(default_factory=list)
    cursor: str | None = None


ReplyCallback = Callable[[Prediction | ServiceError], None]
"""Called exactly once per timestep, on the event loop, with its result."""
