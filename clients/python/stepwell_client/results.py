"""The values that client calls return."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from stepwell_client.errors import ClientError
from stepwell_client.wire.formats import Array


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """The result of a committed step, chunk or reset.

    Attributes:
        outputs: An array per output: `(*row)` for a step and for a chunk's `last`, `(T, *row)` for a whole chunk.
            Empty for `none` and for a reset.
        step: Timesteps that the stream had consumed after this call's last one, since it was created or reset.
        state_id: A hash of the stream's whole history; empty if the stream has been stepped further since.
        replayed: The call had been applied before, and this is the stored response.
        created: The call created the stream.
        skipped: Number of the call's first timesteps that were applied before, by their positions in their source.
        unknown: Number of the call's first timesteps whose outputs are not known any more; they are zeros.
        source_changed: The stream keeps the position of this source in place of the one used longest ago.
        version: The model version that computed the last timestep; None: the call had no source, and the version is the
            one of the call before.
        versions: The version that computed each timestep, None where it is not known any more; empty: `version` is that
            of all.
    """

    outputs: dict[str, Array]
    step: int
    state_id: str
    replayed: bool = False
    created: bool = False
    skipped: int = field(default=0, kw_only=True)
    unknown: int = field(default=0, kw_only=True)
    source_changed: bool = field(default=False, kw_only=True)
    version: int | None = field(default=None, kw_only=True)
    versions: tuple[int | None, ...] = field(default=(), kw_only=True)

    @property
    def output(self) -> Array:
        """The only output.

        Raises:
            ClientError: `not_one_output`: there are no outputs, or several.
        """
        if len(self.outputs) != 1:
            names = ", ".join(self.outputs) or "none"
            raise ClientError(
                "not_one_output",
                f"The result has {len(self.outputs)} outputs ({names}); `output` needs exactly one.",
                fix="Select one from `outputs` by its name.",
                applied="yes",
            )
        return next(iter(self.outputs.values()))


@dataclass(frozen=True, slots=True, eq=False)
class Rollout(StepResult):
    """The result of a rollout.

    `outputs` are `(H, *row)`, with several samples `(samples, H, *row)`; H is the horizon.

    Attributes:
        next: The input computed from each prediction, in the same shapes.
        seed: The random seed; None for a deterministic rollout.
    """

    next: dict[str, Array] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RolloutTimestep:
    """A timestep of a rollout that is received timestep by timestep.

    Attributes:
        outputs: The prediction, `(*row)` by output; with several samples `(samples, *row)`.
        next: The input computed from it, in the same shapes.
        rollout: Of the last timestep, the rollout: step, state id, seed and all of `next`. Else None.
    """

    outputs: dict[str, Array]
    next: dict[str, Array]
    rollout: Rollout | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """The result of a timestep whose state was in the request.

    Attributes:
        outputs: The prediction, `(*row)` by output.
        state: The packed state after the timestep, for the next call.
    """

    outputs: dict[str, Array]
    state: str


@dataclass(frozen=True, slots=True, eq=False)
class Event(StepResult):
    """A committed step or chunk, as a watch reports it.

    Attributes:
        model: The model's name.
        stream: The stream's id.
        inputs: The inputs, if the watch includes them.
    """

    model: str = ""
    stream: str = ""
    inputs: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that a watch has missed.

    Attributes:
        timesteps: Minimum number of timesteps whose predictions were missed.
    """

    timesteps: int


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A stream's state, which can be written to a stream of any service with the model.

    Attributes:
        states: An array per state.
        step: Timesteps that the stream had consumed.
        fingerprint: The fingerprint of the model that wrote the state; empty accepts any model.
    """

    states: dict[str, Array]
    step: int = 0
    fingerprint: str = ""


class PackedState(msgspec.Struct, frozen=True):
    """A stream's state as one text, with which a stream elsewhere goes on, or `Model.run`.

    Attributes:
        state: The text: the model's fingerprint, the states and a checksum.
        step: Timesteps that the stream had consumed.
    """

    state: str
    step: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """A named copy of a stream.

    Attributes:
        name: The snapshot's name.
        version: The model version that would continue from it; None if it is not loaded.
        step: Timesteps that the stream had consumed.
        state_id: The stream's state id at that step.
        taken_at: When the snapshot was taken, in UTC.
    """

    name: str
    version: int | None
    step: int
    state_id: str
    taken_at: datetime


class SourceStatus(msgspec.Struct, frozen=True):
    """The source that a stream has used last.

    Attributes:
        at: Position of the newest timestep that was applied from it.
    """

    at: int


class Status(msgspec.Struct, frozen=True):
    """A stream's position and times.

    Attributes:
        stream: The stream's id.
        model: The model's name.
        version: The model version that the stream's next step runs.
        step: Timesteps that the stream has consumed since it was created or reset.
        state_id: A hash of the stream's whole history.
        created_at: When the stream was created, in UTC.
        updated_at: Its last commit, in UTC.
        expires_in_s: Seconds until the stream expires, if it stays idle.
        source: The position of the source used last; None if the stream has none.
    """

    stream: str
    model: str
    version: int
    step: int
    state_id: str
    created_at: datetime
    updated_at: datetime
    expires_in_s: float
    source: SourceStatus | None = None
