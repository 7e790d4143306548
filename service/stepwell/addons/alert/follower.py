"""`StreamFollower`: evaluates every commit of a model's streams once, from their event logs and from a watch.

The event log of a stream decides what is evaluated, from the position in the stream's state on. A message of the watch
is evaluated without a read of the log only if it is the next one after that position.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Final

import msgspec

from stepwell.addons.alert.counters import AlertCounters
from stepwell.addons.alert.evaluation import RuleEvaluation
from stepwell.addons.alert.event_logs import EventLogs, StreamTail
from stepwell.addons.alert.rules import FollowedModel
from stepwell.addons.alert.store import AlertWrites, raised_member
from stepwell.addons.alert.stream_state import ALARM_KINDS, Alarm, AlertState, StreamUpdate
from stepwell.addons.alert.updates import commit_times, newest_event, update_of, updates_after
from stepwell.addons.watch.refusals import RefusalReader, Refusals

_log = logging.getLogger(__name__)
_FOLLOWED: Final = ""  # the entry of the states of a model that was followed before; no stream has this id
_REFUSALS: Final = "/"  # the entry with the position in the log of refusals; no stream has this id
_BEFORE_EXPIRY_MS: Final = 1000  # so long before its expiry a stream is checked: if it is gone then, it was deleted
_CLOCK_MS: Final = 50  # the store's clock is known so exactly
_AFTER_EXPIRY_MS: Final = 10
_RAISED_CHECK_MS: Final = 10_000  # between two checks whether a stream with raised alarms still exists


class StreamFollower:
    """The streams of one model. Its methods run one after the other."""

    def __init__(  # noqa: PLR0917 - the parts of a follower
        self,
        model: FollowedModel,
        logs: EventLogs,
        refusals: RefusalReader,
        evaluation: RuleEvaluation,
        now_ms: Callable[[], int],
        counters: AlertCounters,
        group: str,
    ) -> None:
        """Create it; `load` reads what was evaluated before.

        Args:
            model: What is followed.
            logs: The event logs of its streams.
            refusals: The log of their refused timesteps.
            evaluation: Its rules.
            now_ms: The store's clock.
            counters: Counts what is done.
            group: The name of the group of processes.
        """
        self.model = model
        self._logs = logs
        self._refusals = refusals
        self._evaluation = evaluation
        self._now_ms = now_ms
        self._counters = counters
        self._group = group
        self._states: dict[str, AlertState] = {}
        self._was_followed = False
        self._synced: set[str] = set()  # streams of which the watch has reached the position
        self._unsure: dict[str, tuple[int, bytes]] = {}  # streams to read, with the newest message of the watch
        self._due: list[tuple[float, str]] = []  # a heap
        self._scheduled: dict[str, float] = {}
        self._expires: dict[str, float] = {}
        self._checked: dict[str, float] = {}  # when a stream was last found to exist
        self._dirty: dict[str, bool] = {}
        self._alarms: list[Alarm] = []
        self._removed: list[str] = []  # members of the index of raised alarms whose rules are gone

    def __len__(self) -> int:
        """Return the number of streams."""
        return len(self._states)

    @property
    def next_due_ms(self) -> float | None:
        """When `check_due` has something to do, by the store's clock; None: not yet known."""
        return self._due[0][0] if self._due else None

    @property
    def has_alarms(self) -> bool:
        """Whether alarms wait for `take_writes`."""
        return bool(self._alarms)

    def load(self, states: dict[str, bytes]) -> None:
        """Set what was evaluated before, as the store has it."""
        self._was_followed = states.pop(_FOLLOWED, None) is not None
        self._refusals.position = states.pop(_REFUSALS, b"").decode()
        kinds = {f"{kind}:{rule.name}" for rule in self.model.rules for kind in ALARM_KINDS}
        for stream, encoded in states.items():
            try:
                state = AlertState.decode(encoded)
            except msgspec.MsgspecError:
                _log.warning("The state of the stream %s cannot be read; it is evaluated from its event log", stream)
                continue
            removed = [key for key in state.conditions if key not in kinds]
            for key in removed:
                kind, _, rule = key.partition(":")
                self._removed.append(raised_member(self.model.name, stream, self._group, rule, kind))
                del state.conditions[key]
                self._dirty[stream] = True
            self._states[stream] = state

    async def catch_up(self) -> None:
        """Evaluate everything that the event logs of all streams have after the positions.

        Raises:
            ServiceError: The store does not reply.
        """
        self._synced.clear()
        listed = await self._logs.streams(self.model.prefix)
        await self._read({*(name for name in listed if self._evaluation.rules_of(name)), *self._states})
        if not self._was_followed:
            self._was_followed = True
            self._dirty[_FOLLOWED] = True

    async def follow(self, updates: Iterable[tuple[str, StreamUpdate]]) -> None:
        """Evaluate messages of the watch; raises as `catch_up` does."""
        for stream, update in updates:
            state = self._states.get(stream)
            position = (update.step, update.state_id)
            if state is not None and stream in self._synced and stream not in self._unsure:
                if position == (state.step, state.state_id):
                    continue
                if update.step_before == state.step and not state.expired_ms:
                    self._apply(stream, state, update, self._now_ms())
                    self._expires.pop(stream, None)
                    self._schedule(stream, state)
                    continue
            if self._evaluation.rules_of(stream):
                self._unsure[stream] = position
        if self._unsure:
            positions, self._unsure = self._unsure, {}
            self._synced -= positions.keys()
            try:
                await self._read(positions)
            except BaseException:
                self._unsure = positions
                raise
            for stream, position in positions.items():
                state = self._states.get(stream)
                if state is not None and position == (state.step, state.state_id):
                    self._synced.add(stream)

    async def follow_refusals(self) -> None:
        """Evaluate what was refused since the last call; raises as `catch_up` does."""
        if all(rule.refused is None for rule in self.model.rules):
            return
        before = self._refusals.position
        found = await self._refusals.read()
        try:  # a message of the watch does not have the time of its commit, with which a refusal is compared
            await self._read({one.stream for one in found if one.stream in self._states})
            commits = await self._commit_times(found)
        except BaseException:
            self._refusals.position = before
            raise
        for one in found:
            state = self._states.get(one.stream)
            if state is not None and not state.expired_ms:
                times = commits.get(one.stream) or [state.at_us]
                self._alarms += self._evaluation.refuse(one.stream, state, one, times, self._now_ms())
                self._dirty[one.stream] = True
                self._schedule(one.stream, state)
        if self._refusals.position != before:
            self._dirty[_REFUSALS] = True

    async def check_due(self) -> None:
        """Evaluate the silences and ends of streams that are due; raises as `catch_up` does."""
        now, due = self._now_ms(), []
        while self._due and self._due[0][0] <= now:
            at, stream = heapq.heappop(self._due)
            state = self._states.get(stream)
            if state is None or self._scheduled.get(stream) != at:
                continue
            del self._scheduled[stream]
            if self._due_of(stream, state) <= now:
                due.append(stream)
            else:
                self._schedule(stream, state)
        if due:
            try:
                await self._read(due)
            except BaseException:
                for stream in due:
                    if (state := self._states.get(stream)) is not None:
                        self._schedule(stream, state)
                raise

    def take_writes(self) -> AlertWrites:
        """Return what has to be written to the store, and regard it as written."""
        states: dict[str, bytes] = {}
        entries = {_FOLLOWED: b"1", _REFUSALS: self._refusals.position.encode()}
        for stream in self._dirty:
            state = self._states.get(stream)
            states[stream] = entries.get(stream, b"") if state is None else state.encode()
        raised = dict.fromkeys(self._removed, b"")
        for alarm in self._alarms:
            member = raised_member(self.model.name, alarm.stream, self._group, alarm.rule, alarm.kind)
            raised[member] = alarm.encode() if alarm.state == "raised" else b""
            self._counters.add_alarm(alarm)
        sent = [alarm.encode() for alarm in self._alarms]
        self._dirty, self._alarms, self._removed = {}, [], []
        return AlertWrites(self.model.name, states, raised, sent)

    # ---------------------------------------------------------------- reads of the store

    async def _read(self, streams: Collection[str]) -> None:
        """Read the ends of event logs, and the whole logs where there is something new, and evaluate them."""
        names, asked = list(streams), self._now_ms()
        tails = await self._logs.tails(names)
        now = self._now_ms()
        new = {}
        for stream, tail in zip(names, tails, strict=True):
            state, event = self._states.get(stream), newest_event(tail.newest)
            if event is None:
                if state is not None:
                    self._check_end(stream, state, tail, asked)
            elif state is None and not self._was_followed:
                state = AlertState(event.step, event.state_id, asked - (tail.age_ms or 0), at_us=event.at_us)
                self._states[stream] = state
                self._dirty[stream] = True
                self._at_its_end(stream, state, tail, asked, update_of(event))
            elif state is None or (event.step, event.state_id) != (state.step, state.state_id):
                new[stream] = tail
            else:
                if tail.age_ms is not None:
                    state.correct_time(asked - tail.age_ms, now - tail.age_ms)
                state.at_us = event.at_us
                self._at_its_end(stream, state, tail, asked, update_of(event))
        for (stream, tail), log in zip(new.items(), await self._logs.read(list(new)), strict=True):
            self._evaluate(stream, tail, log, asked)

    async def _commit_times(self, found: Iterable[Refusals]) -> dict[str, list[int]]:
        """Return the times of the commits of the streams with refusals that came before their newest commit."""
        states = self._states
        late = {one.stream for one in found if one.stream in states and one.at_us < states[one.stream].at_us}
        logs = await self._logs.read(list(late))
        return {
            stream: commit_times(log, (states[stream].step, states[stream].state_id))
            for stream, log in zip(late, logs, strict=True)
        }

    def _evaluate(self, stream: str, tail: StreamTail, log: list[bytes], asked: int) -> None:
        state = self._states.get(stream)
        missed, updates = updates_after(log, None if state is None else (state.step, state.state_id))
        if not updates:  # it was deleted between the two reads; the next check finds that
            if state is not None:
                self._schedule(stream, state)
            return
        if state is None:
            state = self._states[stream] = AlertState(0, b"", 0)
        self._counters.add(missed=missed)
        for update in updates:
            self._apply(stream, state, update, asked - (tail.age_ms or 0))
        self._at_its_end(stream, state, tail, asked, updates[-1])

    def _at_its_end(self, stream: str, state: AlertState, tail: StreamTail, asked: int, newest: StreamUpdate) -> None:
        """Raise what is due because of silence, unless the stream was stepped since its tail was read.

        The tail shows that nothing was committed until it was requested (`asked`). The response may have waited here
        for seconds, and the stream may have been stepped meanwhile.
        """
        event = newest_event(tail.newest)
        is_newest = event is not None and (event.step, event.state_id) == (state.step, state.state_id)
        if is_newest and (alarms := self._evaluation.silence(stream, state, asked, newest.last_outputs())):
            self._alarms += alarms
            self._dirty[stream] = True
        self._check_end(stream, state, tail, asked)

    def _check_end(self, stream: str, state: AlertState, tail: StreamTail, asked: int) -> None:
        """Evaluate the end of a stream that does not exist any more; otherwise schedule its next check."""
        if tail.expires_in_ms is None:
            self._gone(stream, state, self._now_ms())
        else:
            # Not later than it expires: a stream that is gone before then was deleted
            self._expires[stream] = asked + max(tail.expires_in_ms, 0)
            self._checked[stream] = asked
            self._schedule(stream, state)

    def _gone(self, stream: str, state: AlertState, now: int) -> None:
        """Evaluate the end of a stream that does not exist any more."""
        ttl = self.model.stream_ttl_ms
        if state.expired_ms and now < state.expired_ms + ttl:
            self._schedule(stream, state)
            return
        is_early = now < self._expires.get(stream, 0) - _CLOCK_MS
        expired = not state.expired_ms and now - state.seen_ms >= ttl and not is_early
        self._alarms += self._evaluation.end(stream, state, now, expired=expired)
        self._dirty[stream] = True
        self._expires.pop(stream, None)
        self._checked.pop(stream, None)
        if state.conditions:
            self._schedule(stream, state)
        else:
            del self._states[stream]
            self._synced.discard(stream)

    # ---------------------------------------------------------------- helpers

    def _apply(self, stream: str, state: AlertState, update: StreamUpdate, seen_ms: int) -> None:
        self._alarms += self._evaluation.apply(stream, state, update, self._now_ms(), seen_ms)
        self._dirty[stream] = True
        self._counters.add(commits=1, timesteps=update.length)

    def _due_of(self, stream: str, state: AlertState) -> float:
        """Return when a stream has to be checked, by the store's clock."""
        ttl = self.model.stream_ttl_ms
        if state.expired_ms:
            return state.expired_ms + ttl
        ends = self._expires.get(stream)
        if ends is None:
            due = float(state.seen_ms + ttl)
        else:
            due = ends - _BEFORE_EXPIRY_MS
            if self._checked.get(stream, 0) >= due:
                due = ends + _AFTER_EXPIRY_MS
        silence = self._evaluation.shortest_silence_ms(stream, state)
        if silence is not None:
            due = min(due, state.seen_ms + silence)
        if state.has_raised:
            due = min(due, self._checked.get(stream, state.seen_ms) + _RAISED_CHECK_MS)
        return due

    def _schedule(self, stream: str, state: AlertState) -> None:
        due = self._due_of(stream, state)
        scheduled = self._scheduled.get(stream)
        if scheduled is None or due < scheduled:
            self._scheduled[stream] = due
            heapq.heappush(self._due, (due, stream))
