"""Random releases over random streams on two replicas: no timestep is lost, doubled or answered by the wrong half."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.addons.releases.fleet import NEW_FACTOR, OLD_FACTOR, Fleet, folded, two_folds
from tests.servers import Server

STREAMS = ("a", "b", "c", "d")
FACTORS = {1: OLD_FACTOR, 2: NEW_FACTOR}


@dataclass
class Trial:
    """A trial of the release.

    Attributes:
        old: The version that was current.
        new: The candidate.
        mode: Its mode now.
        how: How it ended; empty: it runs.
        ended: The revision that ended it.
    """

    old: int
    new: int
    mode: str
    how: str = ""
    ended: int = 0


@dataclass
class Expected:
    """One stream as it has to be.

    Attributes:
        states: By version, the state; one version, or both of a pair.
        trial: Of a pair, its trial.
        moved: The revision that moved it last.
        version: The version that responded to the newest timestep.
        step: Its step.
        last: Body and response of its newest timestep.
    """

    states: dict[int, int] = field(default_factory=dict)
    trial: Trial | None = None
    moved: int = 0
    version: int = 0
    step: int = 0
    last: tuple[dict[str, Any], dict[str, Any]] | None = None


class Releasing(RuleBasedStateMachine):
    """Every timestep is checked against the folds of both versions, also of streams that sleep through releases."""

    fleet: Fleet

    def __init__(self) -> None:
        super().__init__()
        for name in STREAMS:
            self.fleet.replica.http.delete(self.fleet.replica.path("fold", name))
        document = self.fleet.release()
        if document["candidate"] is not None and document["ended"] is None:
            document = self.fleet.end("abort")
        self.current, self.revision = document["current"], document["revision"]
        self.streams = {name: Expected() for name in STREAMS}
        self.trials: list[Trial] = []

    # ------------------------------------------------------------- the model of a stream

    @property
    def running(self) -> Trial | None:
        return self.trials[-1] if self.trials and not self.trials[-1].how else None

    def settle(self, stream: Expected) -> None:
        """Move a stream to where the release places it at its next step."""
        running = self.running
        if not stream.states:
            if running is None:
                stream.states = {self.current: 0}
            elif running.mode == "switch":
                stream.states, stream.moved = {running.new: 0}, self.revision
            else:
                stream.states, stream.trial, stream.moved = {running.old: 0, running.new: 0}, running, self.revision
            return
        while (move := self.next_move(stream)) is not None:
            stream.states, stream.trial = move
            stream.moved = self.revision

    def next_move(self, stream: Expected) -> tuple[dict[int, int], Trial | None] | None:
        states, trial, running = stream.states, stream.trial, self.running
        if trial is not None:
            if trial.how or trial.mode == "switch":
                half = trial.old if trial.how == "abort" else trial.new
                return {half: states[half]}, None
            return None
        [(version, state)] = states.items()
        for promoted in reversed([trial for trial in self.trials if trial.how == "promote" and trial.old == version]):
            if version != self.current and stream.moved < promoted.ended:
                return {promoted.new: state}, None
            break
        if running is None or running.old != version:
            return None
        if running.mode == "switch":
            return {running.new: state}, None
        return {running.old: state, running.new: state}, running

    def apply(self, stream: Expected, xs: list[int]) -> tuple[list[int], int | None]:
        """Step a stream; return the predictions, and the version if it is another one than before."""
        is_new, before = not stream.states, stream.version
        self.settle(stream)
        answers = {v: folded(xs, start=state, factor=FACTORS[v]) for v, state in stream.states.items()}
        stream.states = {version: ys[-1] for version, ys in answers.items()}
        if stream.trial is None:
            stream.version = next(iter(stream.states))
        else:
            stream.version = stream.trial.new if stream.trial.mode == "ramp" else stream.trial.old
        stream.step += len(xs)
        has_changed = not is_new and before != stream.version
        return answers[stream.version], stream.version if has_changed else None

    # ------------------------------------------------------------- what clients do

    @rule(name=st.sampled_from(STREAMS), x=st.integers(0, 50), n_sent=st.integers(1, 3))
    def step(self, name: str, x: int, n_sent: int) -> None:
        """One timestep, sent up to three times, to both replicas."""
        expected = self.streams[name]
        body = {"inputs": [x], "seq": expected.step + 1}
        answers = [self.fleet.step(name, **body) for _ in range(n_sent)]
        ys, version = self.apply(expected, [x])

        assert [answer["outputs"]["y"] for answer in answers] == [ys] * n_sent
        assert [answer.get("version") for answer in answers] == [version] * n_sent
        assert [answer.get("replayed", False) for answer in answers] == [False] + [True] * (n_sent - 1)
        expected.last = body, answers[0]

    @rule(name=st.sampled_from(STREAMS), xs=st.lists(st.integers(0, 50), min_size=2, max_size=4))
    def chunk(self, name: str, xs: list[int]) -> None:
        """A chunk."""
        expected = self.streams[name]
        answer = self.fleet.chunk(name, [[x] for x in xs], seq=expected.step + 1)
        ys, version = self.apply(expected, xs)

        assert [y for [y] in answer["outputs"]["y"]] == ys
        assert answer.get("version") == version
        expected.last = None

    @rule(xs=st.lists(st.integers(0, 50), min_size=len(STREAMS), max_size=len(STREAMS)))
    def columns(self, xs: list[int]) -> None:
        """One timestep of every stream, by columns."""
        seqs = [expected.step + 1 for expected in self.streams.values()]
        answer = self.fleet.bulk(STREAMS, [[x] for x in xs], seq=seqs)
        expected = [self.apply(stream, [x]) for stream, x in zip(self.streams.values(), xs, strict=True)]

        assert answer["errors"] == {}
        assert answer["outputs"]["y"] == [ys for ys, _ in expected]
        assert answer.get("version", [None] * len(STREAMS)) == [version for _, version in expected]
        for stream in self.streams.values():
            stream.last = None

    @rule(name=st.sampled_from(STREAMS))
    def retry(self, name: str) -> None:
        """The newest timestep again, however many releases were promoted or aborted since."""
        if (last := self.streams[name].last) is not None:
            body, first = last
            again = self.fleet.step(name, **body)
            names = ("outputs", "step", "state_id", "version")
            assert [again.get(one) for one in names] == [first.get(one) for one in names]

    @rule(name=st.sampled_from(STREAMS), x=st.integers(0, 50))
    def peek(self, name: str, x: int) -> None:
        """A peek returns what the step would return."""
        service = self.fleet.replica
        answer = service.http.post(service.path("fold", name, "peek"), json={"inputs": [x]}).json()
        expected = self.streams[name]
        copy = replace(expected, states=dict(expected.states))
        ys, _ = self.apply(copy, [x])
        assert answer["outputs"]["y"] == ys

    # ------------------------------------------------------------- what the operator does

    @precondition(lambda self: self.running is None)
    @rule(mode=st.sampled_from(["shadow", "ramp", "switch"]))
    def start(self, mode: str) -> None:
        """Try the other version on all streams."""
        self.trials.append(Trial(self.current, 3 - self.current, mode))
        self.put(mode)

    @precondition(lambda self: self.running is not None and self.running.mode != "switch")
    @rule(mode=st.sampled_from(["shadow", "ramp", "switch"]))
    def change_mode(self, mode: str) -> None:
        """Let the other half of every pair respond, or drop the old ones."""
        self.trials[-1].mode = mode
        self.put(mode)

    def put(self, mode: str) -> None:
        self.revision = self.fleet.put(candidate=self.trials[-1].new, mode=mode, percent=100)["revision"]

    @precondition(lambda self: self.running is not None)
    @rule(how=st.sampled_from(["promote", "abort"]))
    def end(self, how: str) -> None:
        """End the trial; every stream moves at its next step, whenever that is."""
        trial = self.trials[-1]
        self.revision = self.fleet.end(how)["revision"]
        trial.how, trial.ended = how, self.revision
        if how == "promote":
            self.current = trial.new


@pytest.fixture
def folds(redis_server: Server, tmp_path: Path) -> Iterator[Fleet]:
    with two_folds(redis_server.url, tmp_path) as running:
        yield running


def test_every_timestep_is_applied_once_by_the_version_that_its_release_wants(folds: Fleet) -> None:
    Releasing.fleet = folds
    run_state_machine_as_test(
        Releasing,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            phases=[Phase.generate],  # against servers, looking for a shorter failure takes minutes
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
