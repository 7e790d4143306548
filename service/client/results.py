"""What a caller gets: answers, statuses, and the one error."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from model_export.errors import StepwellError
from model_export.manifest import Array
from service.errors import Applied, Retry


class ClientError(StepwellError):
    """A call that was refused, that got no answer in time, or whose outcome is not known.

    Attributes:
        code: One of the service's codes, or of the client's own: `no_answer`, `unreadable_answer`, `closed`.
        applied: Whether the call moved the stream, with all its retries: where one of them may have, and the last
            one says no, it is "unknown".
        retry: What may be done next: the same call again, the stream's inputs again from `expected`, or never.
        step: The stream's step as the service has it, where it said so.
        expected: The `seq` that the service would take next, where it said so.
        state_id: The stream's state id as the service has it, where it said so.
        retry_after: Seconds that the service asked to wait, or None.
    """

    def __init__(
        self,
        code: str,
        problem: str,
        *,
        fix: str = "",
        applied: Applied = "no",
        retry: Retry = "never",
        step: int | None = None,
        expected: int | None = None,
        state_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(problem, fix=fix)
        self.code = code
        self.applied: Applied = applied
        self.retry: Retry = retry
        self.step = step
        self.expected = expected
        self.state_id = state_id
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """A committed step, chunk or reset.

    Attributes:
        outputs: An array per output: `(*row)` for a step and for a chunk's `last`, `(T, *row)` for a whole chunk.
            Empty for `none` and for a reset.
        step: Timesteps that the stream has consumed since it began or was reset.
        state_id: Names the stream's whole history.
        replayed: It was applied before, and this is the first answer again.
        created: The stream began with it.
    """

    outputs: dict[str, Array]
    step: int
    state_id: str
    replayed: bool = False
    created: bool = False

    @property
    def output(self) -> Array:
        """The only output.

        Raises:
            ClientError: `not_one_output`: there is none, or there are several.
        """
        if len(self.outputs) != 1:
            names = ", ".join(self.outputs) or "none"
            raise ClientError(
                "not_one_output",
                f"The answer has {len(self.outputs)} outputs ({names}); `output` is for exactly one.",
                fix="Take one from `outputs` by its name.",
                applied="yes",
            )
        return next(iter(self.outputs.values()))


@dataclass(frozen=True, slots=True, eq=False)
class Rollout(StepResult):
    """Where a stream goes by its own predictions, or went.

    `outputs` are `(H, *row)`, with several samples `(samples, H, *row)`.

    Attributes:
        next: The input that each prediction was made into, likewise.
        seed: Of the chances, where there are any.
    """

    next: dict[str, Array] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Event(StepResult):
    """A committed step or chunk, as one who watches is told of it.

    Attributes:
        model: The model's name.
        stream: The stream's id.
        inputs: What was sent, where that was asked for.
    """

    model: str = ""
    stream: str = ""
    inputs: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gap:
    """One who watches has missed something here.

    Attributes:
        timesteps: The predictions of how many timesteps, at least.
    """

    timesteps: int


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A stream's state, to be put into a stream anywhere.

    Attributes:
        states: An array per state.
        step: Timesteps that the stream had consumed.
        fingerprint: Names the model that wrote it; empty: whichever takes it.
    """

    states: dict[str, Array]
    step: int = 0
    fingerprint: str = ""


class Snapshot(msgspec.Struct, frozen=True):
    """A copy of a stream under a name.

    Attributes:
        name: Its name.
        version: The version of the model that would go on with it; None: it is not loaded.
        step: Timesteps that the stream had consumed.
        state_id: Named the stream's history then.
        taken_at: When it was taken, in UTC.
    """

    name: str
    version: int | None
    step: int
    state_id: str
    taken_at: datetime


class Status(msgspec.Struct, frozen=True):
    """Where a stream stands.

    Attributes:
        stream: Its id.
        model: Its model's name.
        version: The version of the model that goes on with it.
        step: Timesteps that it has consumed since it began or was reset.
        state_id: Names its whole history.
        created_at: When it began, in UTC.
        updated_at: When it was moved last, in UTC.
        expires_in_s: Seconds until it is forgotten, if it stays idle.
    """

    stream: str
    model: str
    version: int
    step: int
    state_id: str
    created_at: datetime
    updated_at: datetime
    expires_in_s: float
