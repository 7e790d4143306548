"""Frozen values that travel between the doors, the engine and the store; no behaviour."""

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
"""Timesteps with which a stream begins anew, from the initial state, whatever was there."""
ENDS: Final = frozenset[Lifecycle](("last", "whole"))
"""Timesteps after which the stream is forgotten."""


class StreamKey(NamedTuple):
    """A stream's full name: whose it is, which model steps it, what it is called."""

    tenant: str
    model: str
    stream: str


_SINGLE: Final = (1, "all", "on")

# Of these one is made per step, and msgspec's structs are made in a quarter of the time that a NamedTuple takes.


class Timestep(Struct, frozen=True, gc=False):
    """One request to move one stream by one timestep or by a chunk of them.

    Attributes:
        key: The stream.
        inputs: Each model input's bytes, in the order of the inputs' names: `(T, *row)` of its declared dtype in C
            order, checked and finite.
        length: T, the number of timesteps; 1 or more.
        seq: Number of the first timestep, from 1 since creation or reset; None: wherever the stream is.
        after: The 16 bytes of the `state_id` that the stream must have; None: whichever.
        create: May a missing stream begin here: `auto`, `never`, or `must` (it has to be missing).
        idempotency_key: The client's key, 1 to 255 characters, or None.
        keep: Which predictions are wanted, and kept for a retry: all T, the last, or none.
        version: The model version that was asked for; None: the live record's, else the default.
        door: Which way it came, for the metrics.
        life: `on`: the stream goes on; `new`: it begins anew; `last`: it is forgotten afterwards; `whole`: both;
            `none`: of no stream at all, which only a model without state can take.
        name: Where the store has the stream, if that was found out before; else empty.
    """

    key: StreamKey
    inputs: tuple[bytes, ...]
    length: int = 1
    seq: int | None = None
    after: bytes | None = None
    create: Create = "auto"
    idempotency_key: str | None = None
    keep: ReturnMode = "all"
    version: int | None = None
    transport: Transport = "http"
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


class BulkTimesteps(Struct, frozen=True, gc=False):
    """Requests that came together, alike, each to move another stream; attributes as a `Timestep`'s, in columns.

    Attributes:
        keys: The streams.
        names: Where the store has each.
        inputs: `(rows, T, *row)` of its declared dtype by input, checked and finite.
        packed: Each row's bytes of each input, in the order of the inputs' names.
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
    create: Create
    idempotency_key: str | None
    keep: ReturnMode
    version: int | None
    transport: Transport

    def rows(self) -> list[Timestep]:
        """Return every request by itself."""
        length, create, key, keep = self.length, self.create, self.idempotency_key, self.keep
        version, door = self.version, self.transport
        rows = zip(self.keys, self.packed, self.seqs, self.afters, self.names, strict=True)
        return [
            Timestep(stream, inputs, length, seq, after, create, key, keep, version, door, "on", name)
            for stream, inputs, seq, after, name in rows
        ]


class BatchOutput:
    """What a model made of a batch, and where that brought the streams.

    Attributes:
        arrays: One array per answered output, `(rows, T', *row)` with T' = T, 1 or 0 as `keep` says.
        steps: The last timestep of each stream that was applied.
        state_ids: Names of each stream's whole history up to there, 16 bytes each.
        texts: Left to who writes answers: that to each row, made for all rows at once when one is needed.
    """

    __slots__ = ("arrays", "encoded_rows", "state_ids", "steps")

    def __init__(self, arrays: Mapping[str, Array], steps: Sequence[int], state_ids: Sequence[bytes]) -> None:
        """Take what was made."""
        self.arrays = arrays
        self.steps = steps
        self.state_ids = state_ids
        self.encoded_rows: Sequence[bytes] = ()


class Prediction(Struct, frozen=True, gc=False):
    """The committed answer to a `Timestep`.

    Attributes:
        made: What was made together with it.
        row: Its place in that.
        replayed: This request had been applied before; this is its first answer.
        created: This request created the stream.
        version: The model version that made it.
    """

    batch: BatchOutput
    row: int
    replayed: bool = False
    created: bool = False
    version: int = 0

    @property
    def step(self) -> int:
        """The last timestep that was applied."""
        return self.batch.steps[self.row]

    @property
    def state_id(self) -> bytes:
        """Names the whole history up to `step`, 16 bytes."""
        return self.batch.state_ids[self.row]

    @property
    def outputs(self) -> dict[str, Array]:
        """One array per answered output, `(T', *row)`."""
        return {name: array[self.row] for name, array in self.batch.arrays.items()}


class BulkPrediction(Struct, frozen=True, gc=False):
    """The committed answers to `BulkTimesteps`, all applied now, to streams that were there.

    Attributes:
        made: What was made of them, in their order.
        version: The model version that made them.
    """

    batch: BatchOutput
    version: int


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """What the store knows about one stream.

    Attributes:
        version: Model version that wrote the state, or None where it is not loaded here.
        step: Timesteps since creation or reset.
        state_id: 16 bytes.
        created_ms: Milliseconds since the epoch.
        updated_ms: Milliseconds since the epoch.
        expires_in_ms: Milliseconds until the stream is forgotten if it stays idle.
        outputs: The last prediction that is kept, `*row` by name; none where there is none, or its model is not here.
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
    """Where a stream stands after it was put there: reset, forked, or given a state; or where a snapshot stands.

    Attributes:
        step: 0, or the snapshot's, the other stream's or the given one.
        state_id: 16 bytes.
        replayed: The same had been done before; this is its first answer.
    """

    step: int
    state_id: bytes
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class ImportedState:
    """A state from outside, checked: one row per state of the model, its declared dtype, finite.

    Attributes:
        states: `*row` by name.
        step: Timesteps that the stream counts from then on.
    """

    states: Mapping[str, Array]
    step: int


@dataclass(frozen=True, slots=True)
class StreamState:
    """What a stream carries.

    Attributes:
        states: One row per state of the model, `*row` by name.
        step: Timesteps since creation or reset.
        fingerprint: The model that wrote it, 8 bytes.
    """

    states: Mapping[str, Array]
    step: int
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    """What is known of a snapshot.

    Attributes:
        name: Its name.
        version: Model version that wrote the state, or None where it is not loaded here.
        step: The stream's step then.
        state_id: The stream's history then, 16 bytes.
        taken_ms: When it was taken, milliseconds since the epoch.
    """

    name: str
    version: int | None
    step: int
    state_id: bytes
    taken_ms: int


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """A request to go on from where a stream stands, by its own predictions.

    Attributes:
        key: The stream.
        horizon: Timesteps to go.
        inputs: The first inputs that are given, `*row` by name, checked and finite.
        feedback: A rule by input; None: the model's own.
        temperature: In place of the rules'; likewise the two that follow.
        samples: How often to go, each time by chances of its own.
        seed: Of the chances, from 0 to below 2**64; None: any.
        commit: The stream moves by it.
        seq: As for a `Timestep`; likewise those that follow.
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
    """Where a rollout came.

    Attributes:
        outputs: A prediction for each timestep, `(samples, horizon, *row)` by name.
        followed: The inputs that each prediction was made into, `(samples, horizon, *row)` by name.
        seed: Of the chances; None: chance had no part in it.
        step: The step that the stream has, or would have.
        state_id: The stream's history: with what was committed, else as it is; empty where there is no stream.
        replayed: This had been committed before; this is its first answer.
        created: This request created the stream.
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
    """One page of a listing: `(stream, step)` pairs, and where to go on, or None at the end.

    The step is None where the stream's record cannot be read.
    """

    streams: list[tuple[str, int | None]] = field(default_factory=list)
    cursor: str | None = None


ReplyCallback = Callable[[Prediction | ServiceError], None]
"""Called exactly once, on the event loop, when a timestep is answered."""
