"""`stepwell connect --order` and `--every` from a log, with a crash at any operation."""

from __future__ import annotations

import asyncio
import heapq
import json
import random
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pytest

from stepwell.addons.connect.brokers.interface import ReaderOptions
from stepwell.addons.connect.brokers.offsets_in_metadata import DoneOffsets
from stepwell.addons.connect.chunks import PollLimits
from stepwell.addons.connect.config import config_of_flags
from stepwell.addons.connect.messages import BrokerMessage, OutMessage, Undeliverable
from stepwell.addons.connect.session import ConnectSession
from tests.graphs import fold_reference
from tests.processes import ServiceProcess

WAIT = 5


class CrashError(BaseException):
    """The connector ends here."""


class Log:
    """A partition, with what a broker and two other places keep of it.

    Attributes:
        messages: The stream and time of each, in their order.
        keeps_text: Whether a text is kept beside the offset that is committed.
        floor: That offset.
        text: That text.
        decided: The offset of the second group.
        refused: The messages whose timesteps the service refuses: a running sum would overflow.
        out: The predictions.
        dead: The times of dead letters.
    """

    def __init__(
        self, seed: int, streams: int, steps: int, name: str, *, keeps_text: bool, refused_share: float = 0.0
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.keeps_text = keeps_text
        times = [(t, f"{name}{rng.randrange(streams)}") for t in range(1, steps)]
        sent = [(t + (20 if rng.random() < 0.05 else rng.random() * WAIT), t, stream) for t, stream in times]
        sent += [(at + 0.1, t, stream) for at, t, stream in sent if rng.random() < 0.03]
        firsts = [(f"{name}{i}", 0) for i in range(streams)] if refused_share else []
        self.messages = firsts + [(stream, t) for _, t, stream in sorted(sent)]
        self.refused = {(stream, t) for t, stream in times if rng.random() < refused_share} if refused_share else set()
        self.model = "total" if refused_share else "fold"
        self.floor = self.decided = 0
        self.text = ""
        self.out: list[dict[str, Any]] = []
        self.dead: list[tuple[str, int]] = []
        self.left = 0

    def step(self) -> None:
        """Crash here, if it is the turn."""
        self.left -= 1
        if self.left == 0:
            raise CrashError

    def body(self, stream: str, time: int) -> bytes:
        """Return the body of a message."""
        x: Any = time
        if self.model == "total":
            x = [3.4e38 if (stream, time) in self.refused else 1e37 if time == 0 else 0.0, time]
        return json.dumps({"stream": stream, "x": x, "t": time}).encode()

    def decided_at_once(self) -> tuple[set[tuple[str, int]], list[tuple[str, int]]]:
        """Return the messages that are applied, and those that are late: one that is there again is, too."""
        kept, late, waiting = set[tuple[str, int]](), list[tuple[str, int]](), list[tuple[int, str]]()
        applied, newest = dict[str, int](), 0
        for stream, time in self.messages:
            if time <= applied.get(stream, -1) or (stream, time) in kept:
                late.append((stream, time))
            elif (stream, time) not in self.refused:
                kept.add((stream, time))
                heapq.heappush(waiting, (time, stream))
            newest = max(newest, time)
            while waiting and waiting[0][0] <= newest - WAIT:
                at, whose = heapq.heappop(waiting)
                applied[whose] = at
        return kept, late


class LogReader:
    """Reads a log as the reader of Kafka does."""

    generation = 0
    is_full = False

    def __init__(self, log: Log) -> None:
        self._log = log
        self._at = self._before = 0
        self._tracked = DoneOffsets(0)

    async def open(self) -> None:
        self._tracked = DoneOffsets(self._log.floor, self._log.text)
        self._at, self._before = self._log.floor, self._log.decided

    async def poll(self, _limit: int) -> list[BrokerMessage]:
        found = []
        for stream, time in self._log.messages[self._at : self._at + self._log.rng.randrange(1, 30)]:
            if self._tracked.deliver(self._at):
                found.append(BrokerMessage(self._log.body(stream, time), "log/0", self._at, "log"))
            self._at += 1
        return found

    async def acknowledge_some(self, messages: Sequence[BrokerMessage]) -> None:
        self._log.step()
        self._tracked.finish([one.at or 0 for one in messages])
        self._log.floor, self._log.text = self._tracked.floor, self._tracked.text() if self._log.keeps_text else ""
        self._log.step()

    async def settle(self, messages: Sequence[BrokerMessage]) -> None:
        self._log.step()
        if not self._log.keeps_text:
            self._log.decided = max([self._log.decided, *((one.at or 0) + 1 for one in messages)])
        self._log.step()

    def was_settled(self, message: BrokerMessage) -> bool:
        return (message.at or 0) < self._before

    async def is_current(self) -> bool:
        self._log.step()
        return True

    @property
    def is_done(self) -> bool:
        return self._at == len(self._log.messages)

    def lag(self) -> int | None:
        return None

    async def close(self) -> None:
        pass


class LogWriter:
    """Keeps predictions, or dead letters."""

    def __init__(self, log: Log, *, letters: bool) -> None:
        self._log = log
        self._letters = letters

    async def open(self) -> None:
        pass

    async def write(self, messages: Sequence[OutMessage]) -> list[Undeliverable]:
        self._log.step()
        if self._letters:
            for one in messages:
                found = one.document["message"]  # of a tick, a list
                bodies = found if isinstance(found, list) else [found]
                self._log.dead += [(one.key, json.loads(body)["t"]) for body in bodies]
        else:
            self._log.out += [one.document for one in messages]
        self._log.step()
        return []

    async def close(self) -> None:
        pass


async def run(log: Log, service: ServiceProcess, rules: dict[str, Any]) -> None:
    """Run a connector until it crashes, or until the end of the log."""
    tables = {
        "from": {"url": "redis://127.0.0.1/0?stream=in", "stream": "stream", "time": "t", **rules},
        "service": {"model": log.model},
    }
    session: Any = ConnectSession(
        config_of_flags(tables), url=service.url, key=None, options=ReaderOptions(once=True), report=lambda _: None
    )
    session._reader = LogReader(log)
    session._writer, session._dead_letters = LogWriter(log, letters=False), LogWriter(log, letters=True)
    async with session:
        connector: Any = await session.connector()
        connector._limits = PollLimits(3, 1 << 20, 8)  # so that a poll has several chunks of a stream
        await connector._run()


def run_with_crashes(log: Log, service: ServiceProcess, rules: dict[str, Any]) -> None:
    for _ in range(60):
        log.left = log.rng.randrange(1, 40)
        try:
            asyncio.run(run(log, service, rules))
        except CrashError:
            continue
        except BaseExceptionGroup as group:  # while a dead letter was written beside other tasks
            if group.split(CrashError)[1] is not None:
                raise
            continue
        break
    log.left = 0
    asyncio.run(run(log, service, rules))


def predictions(log: Log, stream: str) -> list[tuple[int, int]]:
    """Return the position of each timestep, and its prediction, without repetitions."""
    found = [one for one in log.out if one["stream"] == stream]
    return sorted({(one["source"]["at"], one["outputs"]["y"][-1]) for one in found})


@pytest.mark.parametrize("keeps_text", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_each_message_is_applied_or_a_dead_letter_whatever_operation_a_crash_hits(
    service: ServiceProcess, seed: int, keeps_text: bool
) -> None:
    log = Log(seed, 4, 150, f"c{seed}{keeps_text}.", keeps_text=keeps_text)

    run_with_crashes(log, service, {"order": f"{WAIT}s"})

    kept, late = log.decided_at_once()
    for stream in {one for one, _ in log.messages}:
        times = sorted(time for one, time in kept if one == stream)
        assert predictions(log, stream) == [
            (time * 10**6, y) for time, y in zip(times, fold_reference(times), strict=True)
        ]
    assert {*late} - kept <= {*log.dead} <= {*late}


@pytest.mark.parametrize(("crashes", "keeps_text"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("seed", [0, 5])
def test_a_timestep_that_the_service_refuses_makes_no_message_late(
    service: ServiceProcess, seed: int, keeps_text: bool, crashes: bool
) -> None:
    log = Log(seed, 4, 150, f"r{seed}{keeps_text}{crashes}.", keeps_text=keeps_text, refused_share=0.2)

    if crashes:
        run_with_crashes(log, service, {"order": f"{WAIT}s"})
    else:
        asyncio.run(run(log, service, {"order": f"{WAIT}s"}))

    kept, late = log.decided_at_once()
    for stream in {one for one, _ in log.messages}:
        times = sorted(time for one, time in kept if one == stream)
        assert predictions(log, stream) == list(zip((t * 10**6 for t in times), accumulate(times), strict=True))
    assert ({*late} - kept) | (log.refused - {*late}) <= {*log.dead} <= {*late} | log.refused


@pytest.mark.parametrize("keeps_text", [True, False])
@pytest.mark.parametrize(("seed", "refused_share"), [(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.15)])
def test_ticks_are_those_of_a_run_without_a_crash(
    service: ServiceProcess, seed: int, refused_share: float, keeps_text: bool
) -> None:
    rules = {"order": f"{WAIT}s", "every": "2s", "gap": 1}
    crashed, whole = (
        Log(seed, 4, 150, f"t{seed}{keeps_text}{one}.", keeps_text=keeps_text, refused_share=refused_share)
        for one in "ab"
    )

    run_with_crashes(crashed, service, rules)
    asyncio.run(run(whole, service, rules))

    for number in range(4):
        names = [f"t{seed}{keeps_text}{one}.{number}" for one in "ab"]
        assert predictions(crashed, names[0]) == predictions(whole, names[1])
    assert {(one[-1], time) for one, time in crashed.dead} == {(one[-1], time) for one, time in whole.dead}
