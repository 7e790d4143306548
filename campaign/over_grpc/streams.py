"""Client patterns over gRPC: sequences that are started, stepped and ended, by calls and over stream calls."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from campaign.client import DEADLINE_S, RandomClient, Request, TimedAnswer
from campaign.over_grpc.calls import GrpcCalls, Infer
from campaign.stream_run import StreamRun
from campaign.streams import StreamDriver
from campaign.tally import Tally
from campaign.transports import Transports
from tests.exactly_once.http import NoAnswerError

_ON_THEIR_WAY: Final = 16  # timesteps of one sequence


class GrpcRandomClient(RandomClient):
    """Sends steps over gRPC and everything else over HTTP; otherwise as `RandomClient`."""

    def __init__(self, transports: Transports, ports: Sequence[int], rng: random.Random, tally: Tally) -> None:
        super().__init__(transports, rng, tally)
        self._calls = [GrpcCalls(port) for port in ports]

    async def send_once(self, request: Request) -> tuple[int, dict[str, Any]]:
        """Send a request once, a step by a call of a random kind to a random worker."""
        if request.what != "step":
            return await super().send_once(request)
        body = request.body or {}
        [x] = body["inputs"]["x"]
        one = Infer(
            request.stream,
            x,
            body.get("seq"),
            request.key,
            start=body.get("start", False),
            end=body.get("end", False),
        )
        calls, timeout = self.rng.choice(self._calls), self.random_timeout()
        if self.rng.random() < 0.5:
            status, document = await calls.unary(one, timeout)
            kind = "gRPC call"
        else:
            status, document = await self._stream(calls, one, timeout)
            kind = "gRPC stream"
        if status == 200:
            self.tally.answers[kind] += 1
        return status, document

    async def send_in_order(self, requests: Sequence[Infer]) -> list[tuple[int, dict[str, Any]] | None]:
        """Send requests together over one stream call to a random worker; None: no answer arrived."""
        return await self.rng.choice(self._calls).together(requests, self.random_timeout())

    async def close(self) -> None:
        """Close all connections."""
        for calls in self._calls:
            await calls.close()
        await super().close()

    async def _stream(self, calls: GrpcCalls, one: Infer, timeout: float) -> tuple[int, dict[str, Any]]:
        try:
            return await calls.stream(one, timeout)
        except NoAnswerError:
            if self.rng.random() < 0.1:
                calls.abort()
            raise


class GrpcStreamDriver(StreamDriver):
    """Runs client patterns over gRPC."""

    def __init__(self, client: GrpcRandomClient, rng: random.Random, prefix: str) -> None:
        super().__init__(client, rng, prefix)
        self._infer = client
        self._over: list[str] = []  # sequences that have ended

    @property
    def patterns(self) -> Mapping[str, Callable[[Any], Awaitable[None]]]:
        """The client patterns by name."""
        return _PATTERNS

    async def verify_final_states(self, at_once: int = 32) -> None:
        """Check that every stream is at the step where its client left it, and that no ended sequence exists."""
        await super().verify_final_states(at_once)
        for name in self._over:
            await self._check_absent(name)

    async def ahead(self) -> None:
        """Several timesteps on their way over one stream call, with `step` and a key; those without an answer again."""
        run = await self._begin()
        if run is None:
            return
        for _ in self._iterations():
            xs = [self._xs()[0] for _ in range(self.rng.randint(2, _ON_THEIR_WAY))]
            if not await self._send_ahead(run, xs):
                return
            if self._stopping or run.step > 10 * _ON_THEIR_WAY:
                break
        await self._end(run)

    # ---------------------------------------------------------------- helpers

    async def _begin(self) -> StreamRun | None:
        """Start a sequence; its key makes a repeated start harmless."""
        run = StreamRun(next(self._names))
        started = await self._step(run, self._xs(), seq=1, start=True, key=f"{run.name}-start")
        return run if started else None

    def _xs(self, most: int = 1) -> tuple[int, ...]:
        return super()._xs(1)

    async def _send_ahead(self, run: StreamRun, xs: Sequence[int]) -> bool:
        """Send timesteps until each has an answer; return False if one was rejected."""
        loop, first = asyncio.get_running_loop(), run.step + 1
        sent, waiting = loop.time(), {first + n: x for n, x in enumerate(xs)}
        in_doubt: set[int] = set()
        while waiting:
            answers = await self._infer.send_in_order(
                [Infer(run.name, x, step, f"{run.name}-{step}") for step, x in waiting.items()]
            )
            for step, answer in zip(list(waiting), answers, strict=True):
                status, document = answer or (503, {"applied": "unknown"})
                if status != 200:
                    # A gap: a timestep before it was not applied, or has no answer yet.
                    if status == 400 and document["code"] != "seq_gap":
                        return self._record_answer(run, (), TimedAnswer(status, document, sent, loop.time()))
                    in_doubt |= {step} if document["applied"] == "unknown" else set()
                    continue
                self.tally.answers["gRPC stream, several on their way"] += 1
                self.tally.replayed += document["replayed"]
                self.tally.unknown += step in in_doubt
                self.tally.resolved += step in in_doubt
                self._record_answer(run, (waiting.pop(step),), TimedAnswer(status, document, sent, loop.time()))
            if loop.time() > sent + DEADLINE_S:
                self.tally.report("unresolved", f"{run.name}, {list(waiting)}: outcome unknown")
                return False
            if waiting:
                self.tally.retries += len(waiting)
                await asyncio.sleep(self.rng.uniform(0.01, 0.1))
        return True

    async def _send_invalid_step(self, run: StreamRun) -> None:
        """Send a step that must be rejected, and whose late copy cannot be applied."""
        if self.rng.random() > 0.08:
            return
        newest = run.operations[-1]
        seq = self.rng.choice([newest.first, self.rng.randint(1, newest.first)])
        code = "seq_conflict" if seq == newest.first else "seq_passed"
        self.tally.deliberate[code] += 1
        answer = await self.client.step(run.name, [2**41], seq=seq)
        if answer.code != code:
            self.tally.report("wrong", f"{run.name} at {run.step}, seq {seq}: expected {code}, got {answer.document}")

    async def _end(self, run: StreamRun) -> None:
        """End the sequence, or leave it, and check it."""
        if self.rng.random() < 0.5 or run.state_id is None:
            await super()._end(run)
            return
        self.tally.deliberate["ends"] += 1
        xs, named = self._xs(), {"seq": run.step + 1, "end": True, "key": f"{run.name}-end"}
        if not await self._step(run, xs, **named):
            return
        self.tally.deliberate["late copies"] += 1
        again = await self.client.step(run.name, xs, **named)  # type: ignore[arg-type]  # they fit: see above
        if not again.document.get("replayed") or again.document["step"] != run.step:
            self.tally.report("wrong", f"{run.name}: a copy of its end got {again.document}")
        await self._check_absent(run.name)
        self._over.append(run.name)
        await self._check(run)

    async def _check_absent(self, name: str) -> None:
        """Check that a sequence does not exist."""
        found = await self.client.send_until_resolved(Request(name, "", method="GET"))
        if found.status != 404:
            self.tally.report("doubled", f"{name}: it has ended; found {found.document}")


_PATTERNS: Final[Mapping[str, Callable[[GrpcStreamDriver], Awaitable[None]]]] = {
    "gRPC by step": GrpcStreamDriver.by_seq,
    "gRPC by keys": GrpcStreamDriver.by_keys,
    "gRPC, several on their way": GrpcStreamDriver.ahead,
}
