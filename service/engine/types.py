"""Frozen values that travel between the doors, the engine and the store; no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct

from model_export.manifest import Array
from service.errors import ServiceError
from service.store.keys import record_key

Create = Literal["auto", "never", "must"]
Return = Literal["all", "last", "none"]
Door = Literal["http", "websocket", "oip"]
Life = Literal["on", "new", "last", "whole", "none"]
BEGINS: Final = frozenset[Life](("new", "whole"))
"""Timesteps with which a stream begins anew, from the initial state, whatever was there."""
ENDS: Final = frozenset[Life](("last", "whole"))
"""Timesteps after which the stream is forgotten."""


class StreamKey(NamedTuple):
    """A stream's full name: whose it is, which model steps it, what it is called."""

    tenant: str
    model: str
    stream: str

    @property
    def name(self) -> str:
        """Where the store has it."""
        return record_key(*self)


_PLAIN: Final = (1, "auto", "all", "on")

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
    keep: Return = "all"
    version: int | None = None
    door: Door = "http"
    life: Life = "on"
    name: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it is one timestep that says nothing but its number; see `StreamDoor`."""
        return (
            self.seq is not None
            and self.after is None
            and self.idempotency_key is None
            and (self.length, self.create, self.keep, self.life) == _PLAIN
        )


class StreamDoor(Struct, frozen=True, gc=False):
    """A stream, as one door reaches it: what is common to timesteps that say nothing but their number.

    Attributes:
        key: The stream.
        name: Where the store has it.
        version: As a `Timestep`'s.
        door: As a `Timestep`'s.
    """

    key: StreamKey
    name: str
    version: int | None
    door: Door

    def timestep(self, inputs: tuple[bytes, ...], seq: int) -> Timestep:
        """Return such a timestep."""
        return Timestep(self.key, inputs, seq=seq, version=self.version, door=self.door, name=self.name)


class Timesteps(Struct, frozen=True, gc=False):
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
    keep: Return
    version: int | None
    door: Door

    def each(self) -> list[Timestep]:
        """Return every request by itself."""
        length, create, key, keep = self.length, self.create, self.idempotency_key, self.keep
        version, door = self.version, self.door
        rows = zip(self.keys, self.packed, self.seqs, self.afters, self.names, strict=True)
        return [
            Timestep(stream, inputs, length, seq, after, create, key, keep, version, door, "on", name)
            for stream, inputs, seq, after, name in rows
        ]


class Made:
    """What a model made of a batch, and where that brought the streams.

    Attributes:
        arrays: One array per answered output, `(rows, T', *row)` with T' = T, 1 or 0 as `keep` says.
        steps: The last timestep of each stream that was applied.
        state_ids: Names of each stream's whole history up to there, 16 bytes each.
        texts: Left to who writes answers: that to each row, made for all rows at once when one is needed.
    """

    __slots__ = ("arrays", "state_ids", "steps", "texts")

    def __init__(self, arrays: Mapping[str, Array], steps: Sequence[int], state_ids: Sequence[bytes]) -> None:
        """Take what was made."""
        self.arrays = arrays
        self.steps = steps
        self.state_ids = state_ids
        self.texts: Sequence[bytes] = ()


class Prediction(Struct, frozen=True, gc=False):
    """The committed answer to a `Timestep`.

    Attributes:
        made: What was made together with it.
        row: Its place in that.
        replayed: This request had been applied before; this is its first answer.
        created: This request created the stream.
        version: The model version that made it.
    """

    made: Made
    row: int
    replayed: bool = False
    created: bool = False
    version: int = 0

    @property
    def step(self) -> int:
        """The last timestep that was applied."""
        return self.made.steps[self.row]

    @property
    def state_id(self) -> bytes:
        """Names the whole history up to `step`, 16 bytes."""
        return self.made.state_ids[self.row]

    @property
    def outputs(self) -> dict[str, Array]:
        """One array per answered output, `(T', *row)`."""
        return {name: array[self.row] for name, array in self.made.arrays.items()}


class Predictions(Struct, frozen=True, gc=False):
    """The committed answers to `Timesteps`, all applied now, to streams that were there.

    Attributes:
        made: What was made of them, in their order.
        version: The model version that made them.
    """

    made: Made
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
class Position:
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
class GivenState:
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
class RolloutAsk:
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
class RolledOut:
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
    followed: Mapping[str, Array]
    seed: int | None
    step: int
    state_id: bytes
    replayed: bool = False
    created: bool = False


@dataclass(frozen=True, slots=True)
class StreamPage:
    """One page of a listing: `(stream, step)` pairs, and where to go on, or None at the end.

    The step is None where the stream's record cannot be read.
    """

    streams: list[tuple[str, int | None]] = field(default_factory=list)
    cursor: str | None = None


Done = Callable[[Prediction | ServiceError], None]
"""Called exactly once, on the event loop, when a timestep is answered."""
