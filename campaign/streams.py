"""Client patterns: each steps one stream, or several, to the end and checks the answers against the fold."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from campaign.checker import MODEL, TENANT, check
from campaign.client import DEADLINE_S, RandomClient, Request, TimedAnswer
from campaign.operations import Operation
from campaign.releases.folds import Folds, after_move, after_reset
from campaign.releases.log import ReleaseLog
from campaign.stream_run import StreamRun
from stepwell.store.keys import record_key
from tests.exactly_once.http import NoAnswerError

STEPS = 60  # per stream, approximately
WRITERS = 3  # concurrent clients of a stream stepped by keys
BULK_SIZES = (8, 24)  # streams of a bulk request: the engine processes few row by row, many in columns


class StreamDriver:
    """Runs client patterns, one after the other, until stopped.

    Attributes:
        ended: Each stream as its client left it.
    """

    def __init__(self, client: RandomClient, rng: random.Random, prefix: str, log: ReleaseLog | None = None) -> None:
        """Create a driver.

        Args:
            client: Sends the requests.
            rng: Source of the random choices.
            prefix: Prefix of the streams' names.
            log: The releases; None: there is none.
        """
        self.log = ReleaseLog() if log is None else log
        self.client = client
        self.tally = client.tally
        self.rng = rng
        self.ended: dict[str, StreamRun] = {}
        self._names = (f"{prefix}-{n}" for n in itertools.count())
        self._stopping = False

    @property
    def patterns(self) -> Mapping[str, Callable[[Any], Awaitable[None]]]:
        """The client patterns by name."""
        return PATTERNS

    def stop(self) -> None:
        """Let the running patterns finish their streams."""
        self._stopping = True

    async def run_patterns(self) -> None:
        """Run patterns until stopped."""
        while not self._stopping:
            pattern = self.rng.choice(list(self.patterns))
            await self.patterns[pattern](self)
            self.tally.streams[pattern] += 1

    async def verify_final_states(self, at_once: int = 32) -> None:
        """Check that every stream is still at the step where its client left it."""
        turn = asyncio.Semaphore(at_once)

        async def one(run: StreamRun) -> None:
            async with turn:
                found = await self.client.send_until_resolved(Request(run.name, "", method="GET"))
            if (found.document.get("step"), found.document.get("state_id")) != (run.step, run.state_id):
                self.tally.report(
                    "lost", f"{run.name}: left at step {run.step}, {run.state_id}; found {found.document}"
                )

        await asyncio.gather(*(one(run) for run in self.ended.values()))

    # ---------------------------------------------------------------- the patterns

    async def by_seq(self) -> None:
        """Steps with `seq`; with deliberate copies, gaps, conflicts and late copies."""
        run = await self._begin()
        if run is None:
            return
        for _ in self._iterations():
            xs = self._xs()
            if not await self._step(run, xs, seq=run.step + 1):
                return
            await self._send_invalid_step(run)
            if self.rng.random() < 0.05 and len(run.operations) > 1:
                await self._late_copy(run)
        await self._end(run)

    async def by_seq_and_after(self) -> None:
        """Steps with `seq` and `after`, as the client library sends them; with resets, snapshots, forks and moves."""
        run, snapshot = StreamRun(next(self._names)), None
        for _ in self._iterations():
            named: dict[str, Any] = {"seq": run.step + 1}
            named |= {"create": "must"} if run.state_id is None else {"after": run.state_id}
            if not await self._step(run, self._xs(), **named):
                return
            await self._send_invalid_step(run)
            dice = self.rng.random()
            if self.log.trials and 0.06 <= dice < 0.09:
                await self._check(run)
                run = await self._move(run)
            elif dice < 0.02:
                snapshot = await self._snapshot(run)
            elif dice < 0.04:
                await self._check(run)
                run = await self._reset(run, snapshot)
            elif dice < 0.06:
                await self._end(run)
                run, snapshot = await self._fork(run), None
            if run.state_id is None:
                return
        await self._end(run)

    async def by_after(self) -> None:
        """Steps with `after` alone."""
        run = StreamRun(next(self._names))
        for _ in self._iterations():
            named = {"seq": 1} if run.state_id is None else {"after": run.state_id}
            if not await self._step(run, self._xs(), **named):
                return
        await self._end(run)

    async def by_keys(self) -> None:
        """Steps with idempotency keys, from several independent clients on one stream; with late copies."""
        run = await self._begin()
        if run is None:
            return

        async def writer(number: int) -> None:
            for n in itertools.islice(self._iterations(), STEPS // WRITERS):
                xs, key = self._xs(), f"{number}-{n}"
                answer = await self.client.step(run.name, xs, key=key, copies=self._copies())
                if not self._record_answer(run, xs, answer):
                    return
                if self.rng.random() < 0.1:
                    self.tally.deliberate["late copies"] += 1
                    again = await self.client.step(run.name, xs, key=key)
                    if not again.same_as(answer) or not again.document.get("replayed"):
                        self.tally.report(
                            "wrong", f"{run.name} {key}: answered {answer.document}, then {again.document}"
                        )

        await asyncio.gather(*(writer(number) for number in range(WRITERS)))
        await self._end(run)

    async def in_bulk(self) -> None:
        """Bulk steps of many streams with `seq`; unanswered rows are sent again."""
        runs = [StreamRun(next(self._names)) for _ in range(self.rng.choice(BULK_SIZES))]
        for _ in self._iterations():
            if not await self.step_all(runs):
                return
        for run in runs:
            await self._end(run)

    # ---------------------------------------------------------------- helpers

    async def _begin(self) -> StreamRun | None:
        """Return a stream that its first step creates."""
        return StreamRun(next(self._names))

    def _iterations(self) -> Any:
        return itertools.takewhile(lambda _: not self._stopping, range(self.rng.randint(STEPS // 2, STEPS * 3 // 2)))

    def _xs(self, most: int = 5) -> tuple[int, ...]:
        length = 1 if self.rng.random() < 0.85 else self.rng.randint(1, most)
        return tuple(self.rng.randrange(-(2**40), 2**40) for _ in range(length))

    def _copies(self) -> int:
        return self.rng.choice((2, 3)) if self.rng.random() < 0.1 else 1

    async def _step(self, run: StreamRun, xs: tuple[int, ...], **named: Any) -> bool:
        return self._record_answer(run, xs, await self.client.step(run.name, xs, copies=self._copies(), **named))

    def _record_answer(self, run: StreamRun, xs: tuple[int, ...], answer: TimedAnswer) -> bool:
        """Record an answer; return False if the step was rejected, after which the stream cannot be checked further."""
        self.tally.seconds.append(answer.answered - answer.sent)
        if answer.status == 200:
            run.record(xs, answer)
            return True
        if answer.status:
            kind = "error" if answer.status >= 500 else "refused"
            self.tally.report(kind, f"{run.name} at {run.step}, {xs}: {answer.document}")  # type: ignore[arg-type]
        return False

    async def _send_invalid_step(self, run: StreamRun) -> None:
        """Send a step that must be rejected. It has `after`, so that a late copy of it cannot be applied."""
        if self.rng.random() > 0.08:
            return
        newest = run.operations[-1]
        seq, code = self.rng.choice([
            (run.step + self.rng.randint(2, 9), "seq_gap"),
            (newest.first, "seq_conflict"),
            (self.rng.randint(1, newest.first), "seq_passed"),
        ])  # fmt: skip
        code = "seq_conflict" if seq == newest.first else code
        self.tally.deliberate[code] += 1
        answer = await self.client.step(run.name, [2**41], seq=seq, after=run.state_id)
        found = (answer.code, answer.document.get("step"), answer.document.get("expected"))
        if found != (code, run.step, run.step + 1):
            self.tally.report("wrong", f"{run.name} at {run.step}, seq {seq}: expected {code}, got {answer.document}")

    async def _late_copy(self, run: StreamRun) -> None:
        """Send an older step again."""
        older = self.rng.choice(run.operations[:-1])
        self.tally.deliberate["late copies"] += 1
        answer = await self.client.step(run.name, older.xs, seq=older.first)
        if (answer.code, answer.document.get("applied")) != ("seq_passed", "yes"):
            self.tally.report("wrong", f"{run.name}: a late copy of step {older.step} got {answer.document}")

    async def _reset(self, run: StreamRun, snapshot: StreamRun | None) -> StreamRun:
        """Reset the stream to its initial state, or to a snapshot."""
        then = snapshot or StreamRun(run.name)
        if snapshot is None:
            then.states = frozenset(after_reset(asyncio.get_running_loop().time(), self.log))
        body: dict[str, Any] = {"after": run.state_id, **({"to": {"snapshot": "s"}} if snapshot else {})}
        return await self._restart(then, Request(run.name, "reset", body))

    async def _move(self, run: StreamRun) -> StreamRun:
        """Move the stream to a random version by hand."""
        version, sent = self.rng.choice((1, 2)), asyncio.get_running_loop().time()
        request = Request(run.name, "move", {"version": version, "after": run.state_id})
        then = await self._restart(StreamRun(run.name, step=run.step), request)
        move = Operation((), run.step, (), sent, asyncio.get_running_loop().time())
        record = record_key(TENANT, MODEL, run.name)
        return replace(then, states=frozenset(after_move(self._states(run), version, move, self.log, record)))

    async def _fork(self, run: StreamRun) -> StreamRun:
        """Fork the stream, and continue with the fork."""
        other = StreamRun(next(self._names), step=run.step, states=self._states(run))
        return await self._restart(other, Request(run.name, "fork", {"to": other.name, "after": run.state_id}))

    async def _snapshot(self, run: StreamRun) -> StreamRun | None:
        """Take a snapshot; return the stream as it would start from it."""
        then = StreamRun(run.name, step=run.step, states=self._states(run))
        body = {"after": run.state_id}
        system = await self._restart(then, Request(run.name, "snapshots/s", body, method="PUT"))
        return None if system.state_id is None else then

    async def _restart(self, then: StreamRun, request: Request) -> StreamRun:
        """Send a reset, fork or snapshot; return the stream after it, without a state id if it was rejected."""
        self.tally.deliberate[f"{request.what.partition('/')[0]}s".replace("ss", "s")] += 1
        answer = await self.client.send_until_resolved(request)
        if answer.status != 200 or answer.document["step"] != then.step:
            self.tally.report("refused", f"{request}: expected step {then.step}, got {answer.document}")
            return StreamRun(then.name)
        return replace(then, operations=[], state_id=answer.document["state_id"], start=then.step)

    async def step_all(self, runs: Sequence[StreamRun]) -> bool:
        """Step every stream once, by columns; return False if a step was rejected."""
        loop = asyncio.get_running_loop()
        rows = {run.name: (run, self._xs(most=1), run.step + 1) for run in runs}
        sent, in_doubt = loop.time(), set[str]()
        while rows:
            answers = await self._send_bulk(list(rows.values()))
            for name in list(rows):
                document = answers.get(name, {"status": 503, "applied": "unknown"})
                answer = TimedAnswer(document.get("status", 200), document, sent, loop.time())
                if answer.status in (429, 503):
                    in_doubt |= {name} if document["applied"] != "no" else set()
                    continue
                self.tally.unknown += name in in_doubt
                self.tally.resolved += name in in_doubt
                run, xs, _ = rows.pop(name)
                if not self._record_answer(run, xs, answer):
                    return False
            if loop.time() > sent + DEADLINE_S:
                self.tally.report("unresolved", f"{list(rows)}: outcome unknown")
                return False
            if rows:
                self.tally.retries += 1
                await asyncio.sleep(self.rng.uniform(0.01, 0.1))
        return True

    async def _send_bulk(self, rows: Sequence[tuple[StreamRun, tuple[int, ...], int]]) -> dict[str, dict[str, Any]]:
        """Send one bulk request; return the answer or problem of each row, or nothing without an answer."""
        transports = self.client.transports
        port = self.rng.choice(transports.ports)
        names = [run.name for run, _, _ in rows]
        body = {"streams": names, "inputs": {"x": [xs[:1] for _, xs, _ in rows]}, "seq": [seq for _, _, seq in rows]}
        by_http = self.rng.random() < 0.5
        try:
            if by_http:
                status, document = await transports.http.request(
                    "POST", port, f"{transports.path}/step", body, timeout=5
                )
            else:
                status, document = await transports.many(port).request(body, timeout=5)
        except NoAnswerError:
            return {}
        if status != 200:
            return {name: {**document, "status": status} for name in names}
        self.tally.answers[f"columns by {'HTTP' if by_http else 'WebSocket'}"] += 1
        found = {}
        for at, name in enumerate(names):
            error = document["errors"].get(str(at)) if document.get("errors") else None
            row = {"step": document["step"][at], "state_id": document["state_id"][at]}
            if (version := document.get("version", [None] * len(names))[at]) is not None:
                row["version"] = version
            found[name] = error or {**row, "outputs": {"y": document["outputs"]["y"][at]}}
        return found

    def _states(self, run: StreamRun) -> frozenset[Folds]:
        """Return the states that the stream may have now."""
        log, step = self.log, run.step
        return check(run.name, run.operations, step, states=run.states, start=run.start, log=log).states

    async def _check(self, run: StreamRun, final: int | None = None) -> frozenset[Folds]:
        """Check the stream, and return the states that it may have; empty after a violation."""
        self.tally.steps += sum(len(one.xs) for one in run.operations)
        self.tally.moves += sum(one.version is not None for one in run.operations)
        final = run.step if final is None else final
        checked = check(run.name, run.operations, final, states=run.states, start=run.start, log=self.log)
        self.tally.add(checked.violations)
        return checked.states

    async def _end(self, run: StreamRun) -> None:
        """Read the final step of the stream, and check the stream."""
        if run.state_id is None:
            return
        await self.client.transports.close_stream(run.name)
        found = await self.client.send_until_resolved(Request(run.name, "", method="GET"))
        states = await self._check(run, found.document.get("step", 0))
        if found.status == 200 and found.document["step"] == run.step != 0:
            state_id = run.state_id or found.document["state_id"]  # gRPC has none
            self.ended[run.name] = replace(run, operations=[], start=run.step, state_id=state_id, states=states)
            if found.document["state_id"] != state_id:
                self.tally.report("wrong", f"{run.name}: its history is {found.document}; expected {run.state_id}")


PATTERNS: dict[str, Callable[[StreamDriver], Awaitable[None]]] = {
    "by seq": StreamDriver.by_seq,
    "by seq and after": StreamDriver.by_seq_and_after,
    "by after": StreamDriver.by_after,
    "by keys": StreamDriver.by_keys,
    "in columns": StreamDriver.in_bulk,
}
