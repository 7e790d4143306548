"""`RuleEvaluation`: applies the rules of a model to commits, refusals, silences and ends of streams; does no I/O."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Final

from stepwell.addons.alert.conditions import AlarmCondition
from stepwell.addons.alert.rules import AlarmRule
from stepwell.addons.alert.stream_state import (
    ALARM_KINDS,
    Alarm,
    AlarmKind,
    AlarmState,
    AlertState,
    ConditionState,
    StreamUpdate,
)
from stepwell.addons.watch.refusals import Refusals

_COUNTED_COMMITS: Final = 8
"""Of so many commits of a stream, the newest, it is known how many timesteps were refused after them."""


class RuleEvaluation:
    """The rules of one model. Every method changes a stream's state and returns the alarms, in order."""

    def __init__(self, model: str, rules: Sequence[AlarmRule], new_id: Callable[[], str]) -> None:
        """Create it.

        Args:
            model: The model.
            rules: Its rules.
            new_id: Returns a new random id.
        """
        self._model = model
        self._rules = rules
        self._new_id = new_id

    def rules_of(self, stream: str) -> list[AlarmRule]:
        """Return the rules that apply to a stream."""
        return [rule for rule in self._rules if stream.startswith(rule.prefix)]

    def shortest_silence_ms(self, stream: str, state: AlertState) -> float | None:
        """Return after how many milliseconds of silence the next alarm is raised; None: after none."""
        waiting = [
            rule.silent_s * 1000
            for rule in self.rules_of(stream)
            if rule.silent_s is not None and not state.raised(rule.name, "silent")
        ]
        return min(waiting, default=None)

    def apply(self, stream: str, state: AlertState, update: StreamUpdate, now_ms: int, seen_ms: int) -> list[Alarm]:
        """Evaluate one commit.

        Args:
            stream: The stream.
            state: Its state.
            update: The commit, which has not been evaluated yet.
            now_ms: The store's clock.
            seen_ms: When it was committed, by the store's clock.
        """
        alarms: list[Alarm] = []
        make = _AlarmMaker(self._model, stream, now_ms, self._new_id)
        was_reset = update.step_before < state.step
        for rule in self.rules_of(stream):
            for kind in ("silent", "expired", "refused"):
                if state.raised(rule.name, kind):
                    own = state.condition(rule.name, kind)
                    alarms.append(make.cleared(rule, kind, own, update.step, update.last_outputs()))
            if rule.when is not None:
                own = state.condition(rule.name, "when")
                if was_reset:
                    own.count = 0
                alarms += _thresholds(rule, rule.when, own, update, make)
        state.step, state.state_id, state.seen_ms = update.step, update.state_id, max(seen_ms, state.seen_ms)
        state.expired_ms, state.at_us = 0, update.at_us
        return alarms

    def silence(self, stream: str, state: AlertState, now_ms: int, outputs: dict[str, Any]) -> list[Alarm]:
        """Raise what is due because of silence: no commit since `state.seen_ms`.

        Args:
            stream: The stream.
            state: Its state.
            now_ms: The store's clock.
            outputs: The outputs of its last step.
        """
        make = _AlarmMaker(self._model, stream, now_ms, self._new_id)
        return [
            make.raised(rule, "silent", state.condition(rule.name, "silent"), state.step, outputs)
            for rule in self.rules_of(stream)
            if rule.silent_s is not None
            and now_ms - state.seen_ms >= rule.silent_s * 1000
            and not state.raised(rule.name, "silent")
        ]

    def refuse(
        self, stream: str, state: AlertState, refusals: Refusals, commits: Sequence[int], now_ms: int
    ) -> list[Alarm]:
        """Evaluate timesteps of a stream that were refused, after all commits that are known.

        They are counted for the commit before them: refusals of several workers are read in another order than they
        came, and later than commits that came after them.

        Args:
            stream: The stream.
            state: Its state.
            refusals: The refused timesteps.
            commits: `at_us` of the commits up to the state's position, the oldest first, as far as they are known.
            now_ms: The store's clock.
        """
        alarms: list[Alarm] = []
        make = _AlarmMaker(self._model, stream, now_ms, self._new_id)
        n_before = bisect_right(commits, refusals.at_us)
        commit = commits[n_before - 1] if n_before else 0
        for rule in self.rules_of(stream):
            if rule.refused is None:
                continue
            own = state.condition(rule.name, "refused")
            before = own.refused.get(commit, 0)
            own.refused[commit] = before + refusals.n
            if len(own.refused) > _COUNTED_COMMITS:
                del own.refused[min(own.refused)]
            if before < rule.refused <= before + refusals.n and not own.alarm:
                alarms.append(make.raised(rule, "refused", own, state.step, {}, refusals.code))
                if n_before < len(commits):  # a timestep that came after them was evaluated already
                    alarms.append(make.cleared(rule, "refused", own, state.step, {}))
        return alarms

    def end(self, stream: str, state: AlertState, now_ms: int, *, expired: bool) -> list[Alarm]:
        """Clear the alarms of a stream that does not exist any more, and raise those for its expiry.

        Args:
            stream: The stream.
            state: Its state.
            now_ms: The store's clock.
            expired: Its time to live has passed; otherwise it was deleted.
        """
        alarms: list[Alarm] = []
        make = _AlarmMaker(self._model, stream, now_ms, self._new_id)
        for rule in self.rules_of(stream):
            alarms += [
                make.cleared(rule, kind, state.condition(rule.name, kind), state.step, {})
                for kind in ALARM_KINDS
                if state.raised(rule.name, kind)
            ]
        state.conditions = {}
        if expired:
            state.expired_ms = now_ms
            alarms += [
                make.raised(rule, "expired", state.condition(rule.name, "expired"), state.step, {})
                for rule in self.rules_of(stream)
                if rule.expired
            ]
        return alarms


class _AlarmMaker:
    """Makes the alarms of one stream, and changes the state of their conditions."""

    def __init__(self, model: str, stream: str, now_ms: int, new_id: Callable[[], str]) -> None:
        self._model = model
        self._stream = stream
        self._at = now_ms / 1000
        self._new_id = new_id

    def raised(  # noqa: PLR0917 - the parts of an alarm
        self,
        rule: AlarmRule,
        kind: AlarmKind,
        own: ConditionState,
        step: int,
        outputs: dict[str, Any],
        code: str | None = None,
    ) -> Alarm:
        alarm = self._alarm(rule, kind, "raised", step, outputs, None, code)
        own.count, own.alarm = 0, alarm.id
        return alarm

    def cleared(
        self, rule: AlarmRule, kind: AlarmKind, own: ConditionState, step: int, outputs: dict[str, Any]
    ) -> Alarm:
        alarm = self._alarm(rule, kind, "cleared", step, outputs, own.alarm)
        own.count, own.alarm = 0, ""
        return alarm

    def _alarm(  # noqa: PLR0917 - the parts of an alarm
        self,
        rule: AlarmRule,
        kind: AlarmKind,
        state: AlarmState,
        step: int,
        outputs: dict[str, Any],
        clears: str | None,
        code: str | None = None,
    ) -> Alarm:
        return Alarm(
            id=self._new_id(),
            rule=rule.name,
            state=state,
            model=self._model,
            stream=self._stream,
            step=step,
            at=self._at,
            outputs=outputs,
            kind=kind,
            clears=clears,
            code=code,
            severity=rule.severity,
        )


def _thresholds(
    rule: AlarmRule, when: AlarmCondition, own: ConditionState, update: StreamUpdate, make: _AlarmMaker
) -> list[Alarm]:
    """Evaluate `when` and `clear` on the timesteps of a commit; those whose outputs are not known are left out."""
    known = _known_timesteps(when, rule.clear, update)
    if not known:
        return []
    tensors = {
        "outputs": {name: array[-known:] for name, array in update.outputs.items()},
        "inputs": {name: array[-known:] for name, array in update.inputs.items()},
    }
    holds = when.evaluate(tensors, known)
    if not own.alarm and not own.count and not holds.any():
        return []
    clear = ~holds if rule.clear is None else rule.clear.evaluate(tensors, known) & ~holds
    alarms: list[Alarm] = []
    for i in range(known):
        back = known - i
        if own.alarm:
            own.count = own.count + 1 if clear[i] else 0
            if own.count >= rule.clear_for_steps:
                alarms.append(make.cleared(rule, "when", own, update.step - back + 1, update.last_outputs(back)))
            continue
        own.count = own.count + 1 if holds[i] else 0
        if own.count >= rule.for_steps:
            alarms.append(make.raised(rule, "when", own, update.step - back + 1, update.last_outputs(back)))
    return alarms


def _known_timesteps(when: AlarmCondition, clear: AlarmCondition | None, update: StreamUpdate) -> int:
    """Return how many of the last timesteps of a commit have every tensor that the conditions read."""
    references = [*when.references, *(() if clear is None else clear.references)]
    if not references:
        return update.length
    groups = {"outputs": update.outputs, "inputs": update.inputs}
    return min(len(groups[one.group].get(one.name, ())) for one in references)
