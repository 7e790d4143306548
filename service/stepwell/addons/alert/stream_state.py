"""`AlertState`: how far a stream was evaluated, and which of its alarms are raised; `Alarm`: what is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Struct

from stepwell_export.runtime.manifest import Array

AlarmState = Literal["raised", "cleared"]
AlarmKind = Literal["when", "silent", "expired", "refused"]
_LATE_MS: Final = 5000  # a message may arrive so late; larger differences are a change of `stream_ttl_s`
ALARM_KINDS: Final[tuple[AlarmKind, ...]] = ("when", "silent", "expired", "refused")


class Alarm(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An alarm that was raised or cleared, as it is sent.

    Attributes:
        id: Random; of a double, the same.
        rule: The name of the rule.
        state: `raised` or `cleared`.
        model: The model.
        stream: The stream.
        step: The stream's step where it was raised or cleared; for silence, expiry and refusals, its last one.
        at: When, seconds since 1970 by the clock of the store.
        outputs: The outputs of that step.
        kind: The key of the rule that raised it: `when`, `silent` (`silent_s`), `expired` or `refused`.
        clears: Only of an alarm that is cleared: the id with which it was raised.
        code: Only of an alarm that refusals have raised: the error's code of the newest one.
        severity: Only of a rule that has one: `critical`, `warning` or `info`.
    """

    id: str
    rule: str
    state: AlarmState
    model: str
    stream: str
    step: int
    at: float
    outputs: dict[str, Any]
    kind: AlarmKind
    clears: str | None = None
    code: str | None = None
    severity: str | None = None

    def encode(self) -> bytes:
        """Return it as JSON; numbers that are not finite are null."""
        return msgspec.json.encode(self)


class ConditionState(Struct, array_like=True):
    """The state of one condition of a rule for one stream.

    Attributes:
        count: Timesteps in a row in which `when` held; while an alarm is raised, those in which it was to be cleared.
        alarm: The id of the alarm that is raised; empty: none is.
        refused: Refused timesteps, by the `at_us` of the commit before them.
    """

    count: int = 0
    alarm: str = ""
    refused: dict[int, int] = {}


class AlertState(Struct, array_like=True):
    """What was evaluated of a stream, as the store keeps it.

    Attributes:
        step: The step of the newest event that was evaluated; 0: none.
        state_id: The state id after it, 16 bytes.
        seen_ms: When it was committed, milliseconds since 1970 by the store's clock.
        conditions: By rule and kind; those with nothing to remember are left out.
        expired_ms: When the stream's expiry was found, by the store's clock; 0: it exists.
        at_us: `at_us` of the newest event; 0: it was evaluated from a message of a watch, which does not have it.
    """

    step: int
    state_id: bytes
    seen_ms: int
    conditions: dict[str, ConditionState] = {}
    expired_ms: int = 0
    at_us: int = 0

    def condition(self, rule: str, kind: AlarmKind) -> ConditionState:
        """Return the state of a condition, to change it."""
        return self.conditions.setdefault(condition_key(rule, kind), ConditionState())

    def raised(self, rule: str, kind: AlarmKind) -> bool:
        """Whether an alarm is raised."""
        found = self.conditions.get(condition_key(rule, kind))
        return found is not None and bool(found.alarm)

    @property
    def has_raised(self) -> bool:
        """Whether any alarm is raised."""
        return any(one.alarm for one in self.conditions.values())

    def correct_time(self, earliest_ms: int, latest_ms: int) -> None:
        """Correct `seen_ms`: the store computes the age of the newest event, after the request and before the response.

        Args:
            earliest_ms: When it was committed if the age is that at the request.
            latest_ms: When it was committed if the age is that at the response.
        """
        seen_ms = min(max(self.seen_ms, earliest_ms), latest_ms)
        if abs(seen_ms - self.seen_ms) <= _LATE_MS:
            self.seen_ms = seen_ms

    def encode(self) -> bytes:
        """Return it as the store keeps it."""
        self.conditions = {key: one for key, one in self.conditions.items() if one.count or one.alarm or one.refused}
        return _ENCODE(self)

    @classmethod
    def decode(cls, data: bytes) -> AlertState:
        """Return what `encode` has encoded.

        Raises:
            msgspec.MsgspecError: The bytes are something else.
        """
        return _DECODE(data)


_ENCODE = msgspec.json.Encoder().encode
_DECODE = msgspec.json.Decoder(AlertState).decode


def condition_key(rule: str, kind: AlarmKind) -> str:
    """Return the key of a condition in `AlertState.conditions`."""
    return f"{kind}:{rule}"


class StreamUpdate(NamedTuple):
    """One commit of a stream: a timestep or a chunk.

    Attributes:
        step: The stream's step after it.
        length: Its timesteps, T.
        state_id: The state id after it, 16 bytes.
        outputs: The predictions of its last T' timesteps, `(T', *row)` by name; empty: none was asked for.
        inputs: The inputs, `(T, *row)` by name.
        at_us: When it was sent to the store, microseconds since 1970 by the clock of its worker; 0: not known.
    """

    step: int
    length: int
    state_id: bytes
    outputs: Mapping[str, Array]
    inputs: Mapping[str, Array]
    at_us: int = 0

    @property
    def step_before(self) -> int:
        """The stream's step before it."""
        return self.step - self.length

    def last_outputs(self, back: int = 1) -> dict[str, Any]:
        """Return the outputs of its last timestep, or of one before it, as lists.

        Args:
            back: 1 for the last timestep, 2 for the one before it, and so on.
        """
        return {name: array[-back].tolist() for name, array in self.outputs.items() if len(array) >= back}
