"""Client patterns through a client that users have: handles, feeds, columns, sources, and requests as they are."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from campaign.checker import MODEL
from campaign.client import DEADLINE_S, RandomClient, Request, TimedAnswer
from campaign.clients.calls import ClientCall, ClientCalls, ClientEndedError
from campaign.operations import Operation
from campaign.stream_run import StreamRun
from campaign.streams import BULK_SIZES, StreamDriver
from campaign.tally import Tally
from campaign.transports import Transports
from tests.exactly_once.http import NoAnswerError
from tests.faults.proxy import Proxy

_TIMEOUT_S: Final = 8.0
_WRITERS: Final = 3  # model objects
_PATH: Final = f"/v1/models/{MODEL}"
_COUNTED_AS: Final = {"feed": "feed", "stepMany": "columns", "request": "requests as they are"}
_ANSWERS_BETWEEN: Final = 4  # two disturbances
_NO_ANSWER: Final = ("no_answer", "unreadable_answer")


class ThroughClient(RandomClient):
    """Sends steps by a client's `request`, and everything else over HTTP to a random worker.

    Attributes:
        on_end: Called when the client cannot make calls any more.
    """

    def __init__(self, transports: Transports, calls: ClientCalls, rng: random.Random, tally: Tally) -> None:
        super().__init__(transports, rng, tally)
        self._calls = calls
        self.on_end: Callable[[], None] = lambda: None

    async def make(self, call: ClientCall) -> dict[str, Any]:
        """Make a call of the client; as `ClientCalls.make`."""
        try:
            found = await self._calls.make(call)
        except ClientEndedError as exc:
            self.tally.report("error", str(exc))
            self.on_end()
            return {"error": {"code": "ended", "applied": "unknown", "retry": "never", "status": 500}}
        if "result" in found:
            self.tally.answers[_COUNTED_AS.get(call.method, "HTTP")] += 1
        return found

    async def send_once(self, request: Request) -> tuple[int, dict[str, Any]]:
        """Send a request by one call, within which the client repeats it as it likes."""
        if request.what not in ("step", "steps"):
            return await super().send_once(request)
        document: dict[str, Any] = {
            "method": request.method,
            "path": f"{_PATH}/streams/{request.stream}/{request.what}",
            "body": request.body,
        }
        if request.key:
            document["key"] = request.key
        found = await self.make(ClientCall("request", arguments=[document], timeout=self.random_timeout()))
        error = found.get("error")
        if error is None:
            return 200, found["result"]
        if error["code"] in _NO_ANSWER:
            raise NoAnswerError(error["detail"])
        return error["status"], error

    async def close(self) -> None:
        """Close the client and all connections."""
        await self._calls.close()
        await super().close()


class ClientStreamDriver(StreamDriver):
    """Runs client patterns by the calls of a client."""

    def __init__(self, client: ThroughClient, rng: random.Random, prefix: str, *, requests: bool) -> None:
        """Create a driver.

        Args:
            client: Makes the calls.
            rng: Source of the random choices.
            prefix: Prefix of the streams' names.
            requests: Whether the client can send requests as they are.
        """
        super().__init__(client, rng, prefix)
        self._through = client
        self._requests = requests
        client.on_end = self.stop

    @property
    def patterns(self) -> Mapping[str, Callable[[Any], Awaitable[None]]]:
        """The client patterns by name."""
        return {**_PATTERNS, **(_BY_REQUEST if self._requests else {})}

    async def by_handle(self) -> None:
        """Steps and chunks of a handle, over HTTP and over a feed; with peeks, resets, snapshots and forks."""
        run, has_snapshot, writer = StreamRun(next(self._names)), None, self.rng.randrange(_WRITERS)
        for _ in self._iterations():
            if not await self._step_handle(run, self._xs(), writer):
                return
            dice = self.rng.random()
            if dice < 0.03:
                await self._peek(run, writer)
            elif dice < 0.05:
                has_snapshot = await self._take_snapshot(run, writer)
            elif dice < 0.08:
                await self._check(run)
                run = await self._reset_handle(run, has_snapshot, writer)
            elif dice < 0.1:
                await self._end(run)
                run, has_snapshot = await self._fork_handle(run, writer), None
            if run.state_id is None:
                return
        await self._end(run)

    async def several_under_way(self) -> None:
        """Several calls of one stream at once over a feed; they must be applied in the order of the calls."""
        run, writer = StreamRun(next(self._names)), self.rng.randrange(_WRITERS)
        for _ in self._iterations():
            xs = [self._xs(most=1) for _ in range(self.rng.randint(2, 8))]
            calls = [ClientCall("feed", run.name, [[x]], writer=writer) for (x,) in xs]
            answers = await asyncio.gather(*(self._made(call) for call in calls))
            recorded = [self._record_answer(run, x, answer) for x, answer in zip(xs, answers, strict=True)]
            if not all(recorded):
                return
            steps = [answer.document["step"] for answer in answers]
            if steps != sorted(steps):
                self.tally.report("out of order", f"{run.name}: calls of one feed were applied as {steps}")
        await self._end(run)

    async def in_columns(self) -> None:
        """`stepMany` of many streams; streams whose outcome is not known are stepped again."""
        runs = {run.name: run for run in (StreamRun(next(self._names)) for _ in range(self.rng.choice(BULK_SIZES)))}
        writer = self.rng.randrange(_WRITERS)
        for _ in self._iterations():
            if not await self._step_many(runs, {name: self._xs(most=1) for name in runs}, writer):
                return
        for run in runs.values():
            await self._end(run)

    async def by_source(self) -> None:
        """Timesteps of a log with their positions in it, which is read again from earlier positions."""
        run, writer = StreamRun(next(self._names)), self.rng.randrange(_WRITERS)
        log: list[int] = []
        ys: list[int] = []
        for _ in self._iterations():
            log += [self._xs(most=1)[0] for _ in range(self.rng.randint(1, 4))]
            begin = max(0, len(ys) - self.rng.randint(1, 6)) if self.rng.random() < 0.2 else len(ys)
            self.tally.deliberate["read again"] += begin < len(ys)
            answer = await self._send_source(run, log[begin:], begin, writer)
            if not self._record_source(run, log, ys, begin, answer):
                return
        await self._end(run)

    # ---------------------------------------------------------------- calls

    async def _made(self, call: ClientCall) -> TimedAnswer:
        """Make a call, and make it again until its outcome is known, as the client's documentation requires it."""
        loop = asyncio.get_running_loop()
        sent, unknown = loop.time(), False
        while loop.time() < sent + DEADLINE_S:
            found = await self._through.make(call)
            error = found.get("error")
            if error is None or error["retry"] != "same":
                self.tally.unknown += unknown
                self.tally.resolved += unknown
                document = found["result"] if error is None else error
                self.tally.replayed += bool(document.get("replayed"))
                status = 200 if error is None else error.get("status") or 400
                return TimedAnswer(status, document, sent, loop.time())
            unknown = unknown or error["applied"] != "no"
            self.tally.retries += 1
            call = replace(call, timeout=self._timeout())
        self.tally.unknown += unknown
        self.tally.report("unresolved", f"{call}: outcome unknown after {DEADLINE_S:.0f} s; {error}")
        return TimedAnswer(0, {"code": "unresolved"}, sent, loop.time())

    def _call(
        self, method: str, run: StreamRun, *arguments: Any, writer: int, **options: Any
    ) -> Awaitable[TimedAnswer]:
        return self._made(ClientCall(method, run.name, arguments, options, writer, self._timeout()))

    def _timeout(self) -> float:
        return self.rng.uniform(0.005, 0.1) if self.rng.random() < 0.05 else _TIMEOUT_S

    async def _step_handle(self, run: StreamRun, xs: tuple[int, ...], writer: int) -> bool:
        if len(xs) > 1:
            answer = await self._call("steps", run, [[x] for x in xs], writer=writer)
        else:
            method = self.rng.choice(["step", "feed"])
            answer = await self._call(method, run, [xs[0]], writer=writer)
        return self._record_answer(run, xs, answer)

    async def _peek(self, run: StreamRun, writer: int) -> None:
        self.tally.deliberate["peeks"] += 1
        answer = await self._call("peek", run, [1], writer=writer)
        if answer.document.get("step") != run.step + 1:
            self.tally.report("wrong", f"{run.name} at {run.step}: a peek got {answer.document}")

    async def _take_snapshot(self, run: StreamRun, writer: int) -> StreamRun | None:
        """Take a snapshot; return the stream as it would start from it."""
        self.tally.deliberate["snapshots"] += 1
        answer = await self._call("takeSnapshot", run, "s", writer=writer)
        if (answer.status, answer.document.get("step")) != (200, run.step):
            self.tally.report("refused", f"{run.name}: a snapshot at step {run.step} got {answer.document}")
            return None
        return StreamRun(run.name, step=run.step, states=self._states(run))

    async def _reset_handle(self, run: StreamRun, snapshot: StreamRun | None, writer: int) -> StreamRun:
        """Reset the stream to its initial state, or to a snapshot."""
        self.tally.deliberate["resets"] += 1
        then = snapshot or StreamRun(run.name)
        to = {"to": "s"} if snapshot else {}
        return self._restarted(then, await self._call("reset", run, writer=writer, **to))

    async def _fork_handle(self, run: StreamRun, writer: int) -> StreamRun:
        """Fork the stream, and continue with the fork."""
        self.tally.deliberate["forks"] += 1
        then = StreamRun(next(self._names), step=run.step, states=self._states(run))
        answer = await self._call("fork", run, then.name, writer=writer)
        if answer.status == 200:
            answer = await self._call("status", then, writer=writer)
        return self._restarted(then, answer)

    def _restarted(self, then: StreamRun, answer: TimedAnswer) -> StreamRun:
        """Return the stream after a reset or fork, without a state id if it was rejected."""
        if answer.status != 200 or answer.document["step"] != then.step:
            self.tally.report("refused", f"{then.name}: expected step {then.step}, got {answer.document}")
            return StreamRun(then.name)
        return replace(then, operations=[], state_id=answer.document["state_id"], start=then.step)

    async def _step_many(self, runs: Mapping[str, StreamRun], xs: Mapping[str, tuple[int, ...]], writer: int) -> bool:
        """Step every stream once; return False if a step was rejected."""
        loop = asyncio.get_running_loop()
        sent, waiting, in_doubt = loop.time(), dict(xs), set[str]()
        while waiting and loop.time() < sent + DEADLINE_S:
            inputs = {name: list(x) for name, x in waiting.items()}
            found = await self._through.make(
                ClientCall("stepMany", arguments=[inputs], writer=writer, timeout=self._timeout())
            )
            for name, row in (found.get("result") or dict.fromkeys(waiting, found)).items():
                if (error := row.get("error")) and error["retry"] == "same":
                    in_doubt |= {name} if error["applied"] != "no" else set()
                    continue
                self.tally.unknown += name in in_doubt
                self.tally.resolved += name in in_doubt
                status = (error.get("status") or 400) if error else 200
                answer = TimedAnswer(status, error or row["result"], sent, loop.time())
                if not self._record_answer(runs[name], waiting.pop(name), answer):
                    return False
            self.tally.retries += bool(waiting)
        if waiting:
            self.tally.report("unresolved", f"{list(waiting)}: outcome unknown")
        return not waiting

    async def _send_source(self, run: StreamRun, xs: Sequence[int], begin: int, writer: int) -> TimedAnswer:
        if len(xs) == 1:
            method, source = self.rng.choice(["step", "feed"]), {"id": run.name, "at": begin}
            answer = await self._call(method, run, [xs[0]], writer=writer, source=source)
        else:
            source = {"id": run.name, "at": list(range(begin, begin + len(xs)))}
            answer = await self._call("steps", run, [[x] for x in xs], writer=writer, source=source)
        return answer

    def _record_source(
        self, run: StreamRun, log: Sequence[int], ys: list[int], begin: int, answer: TimedAnswer
    ) -> bool:
        """Record the timesteps that an answer is the first one to, and compare those that had one."""
        if answer.status != 200:
            return self._record_answer(run, (), answer)
        document, known = answer.document, len(ys)
        found = [y[0] if isinstance(y, list) else y for y in document["outputs"]["y"]]
        again, new = found[: known - begin], found[known - begin :]
        differs = [y for y, before in zip(again, ys[begin:], strict=True) if y not in (None, before)]
        if differs or None in new or document["step"] != len(log):
            self.tally.report("wrong", f"{run.name}, positions {begin} to {len(log)}, {known} known: {document}")
            return False
        ys += new
        operation = Operation(tuple(log[known:]), document["step"], tuple(new), answer.sent, answer.answered)
        run.operations.append(operation)
        run.step, run.state_id = document["step"], document["state_id"]
        self.tally.seconds.append(answer.answered - answer.sent)
        return True


async def disturb(proxy: Proxy, rng: random.Random, tally: Tally, every_s: float, progress: Callable[[], int]) -> None:
    """Reset the connections of clients, and lose answers to them, until cancelled.

    It waits for progress in between: on a machine so busy that no answer arrives in that time, none ever would.

    Args:
        proxy: Between the clients and the workers.
        rng: Source of the random choices.
        tally: Counts what is done.
        every_s: Seconds between two of it, on average.
        progress: Returns the number of answers that have arrived.
    """
    seen = 0
    while True:
        await asyncio.sleep(rng.uniform(0.5, 1.5) * every_s)
        if progress() < seen + _ANSWERS_BETWEEN:
            continue
        seen = progress()
        if rng.random() < 0.5:
            tally.deliberate["connections of clients reset"] += 1
            await asyncio.to_thread(proxy.reset_all)
        else:
            tally.deliberate["answers to clients lost"] += 1
            proxy.lose_reply(times=rng.randint(1, 3))


_PATTERNS: Final[Mapping[str, Callable[[ClientStreamDriver], Awaitable[None]]]] = {
    "handle": ClientStreamDriver.by_handle,
    "several under way over a feed": ClientStreamDriver.several_under_way,
    "stepMany": ClientStreamDriver.in_columns,
    "source": ClientStreamDriver.by_source,
}
_BY_REQUEST: Final[Mapping[str, Callable[[ClientStreamDriver], Awaitable[None]]]] = {
    "requests by seq": ClientStreamDriver.by_seq,
    "requests by seq and after": ClientStreamDriver.by_seq_and_after,
    "requests by keys": ClientStreamDriver.by_keys,
}
