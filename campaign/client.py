"""`RandomClient`: sends requests to random workers over random transports, and retries until the outcome is known."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from campaign.tally import Tally
from campaign.transports import Transports
from tests.exactly_once.http import NoAnswerError

DEADLINE_S = 60.0
TRANSPORTS = {"http": "HTTP", "one": "WebSocket of a stream", "many": "WebSocket of a model"}
_TIMEOUT_S = 5.0
_SHORT_TIMEOUT_SHARE = 0.05  # share of the requests with a very short timeout


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one stream.

    Attributes:
        stream: The stream's name.
        what: `step`, `steps`, `reset` and so on; empty for the status.
        body: As in the API.
        key: The Idempotency-Key.
        method: HTTP method.
    """

    stream: str
    what: str
    body: dict[str, Any] | None = None
    key: str | None = None
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """A worker's answer.

    Attributes:
        status: HTTP status, also of answers over WebSocket.
        document: The answer, or the problem.
        sent: When the request was first sent, on the loop's clock.
        answered: When this answer arrived.
    """

    status: int
    document: dict[str, Any]
    sent: float
    answered: float

    @property
    def code(self) -> str:
        """The problem's code, or `ok`."""
        return str(self.document.get("code", "ok"))

    def same_as(self, other: TimedAnswer) -> bool:
        """Whether two answers are of the same step."""
        names = ("outputs", "step", "state_id", "version", "code")
        return [self.document.get(name) for name in names] == [other.document.get(name) for name in names]


class RandomClient:
    """Sends requests to random workers, with retries."""

    def __init__(self, transports: Transports, rng: random.Random, tally: Tally) -> None:
        self.transports = transports
        self.rng = rng
        self.tally = tally

    async def step(
        self, stream: str, xs: Sequence[int], *, key: str | None = None, copies: int = 1, **named: Any
    ) -> TimedAnswer:
        """Send a step or chunk, possibly in several concurrent copies, and compare the answers."""
        what = "step" if len(xs) == 1 else "steps"
        inputs = [xs[0]] if len(xs) == 1 else [[x] for x in xs]
        request = Request(stream, what, {"inputs": {"x": inputs}, **named}, key)
        self.tally.deliberate["copies"] += copies - 1
        answers = await asyncio.gather(*(self.send_until_resolved(request) for _ in range(copies)))
        first = min(answers, key=lambda answer: answer.answered)
        for answer in answers:
            if not answer.same_as(first):
                self.tally.report(
                    "wrong", f"{stream} {request.body}: answered {first.document}, then {answer.document}"
                )
        if sum(answer.status == 200 and not answer.document.get("replayed") for answer in answers) > 1:
            self.tally.report(
                "doubled", f"{stream} {request.body}: {copies} copies, more than one not marked as replayed"
            )
        return first

    async def send_until_resolved(self, request: Request) -> TimedAnswer:
        """Send a request, and retry until its outcome is known."""
        loop = asyncio.get_running_loop()
        sent, unknown = loop.time(), False
        while loop.time() < sent + DEADLINE_S:
            try:
                status, document = await self.send_once(request)
            except NoAnswerError:
                unknown = True
            else:
                if status not in (429, 503):
                    self.tally.resolved += unknown
                    self.tally.unknown += unknown
                    self.tally.replayed += bool(document.get("replayed"))
                    return TimedAnswer(status, document, sent, loop.time())
                unknown = unknown or document["applied"] != "no"
            self.tally.retries += 1
            await asyncio.sleep(self.rng.uniform(0.01, 0.1))  # back off as a client does
        self.tally.unknown += unknown
        self.tally.report("unresolved", f"{request}: outcome unknown after {DEADLINE_S:.0f} s")
        return TimedAnswer(0, {"code": "unresolved"}, sent, loop.time())

    def random_timeout(self) -> float:
        """Return how long to wait for an answer, seconds: mostly long enough."""
        return self.rng.uniform(0.005, 0.1) if self.rng.random() < _SHORT_TIMEOUT_SHARE else _TIMEOUT_S

    async def close(self) -> None:
        """Close all connections."""
        await self.transports.close()

    async def send_once(self, request: Request) -> tuple[int, dict[str, Any]]:
        """Send a request once, over a random transport that supports it."""
        port = self.rng.choice(self.transports.ports)
        timeout = self.random_timeout()
        transport = (
            self.rng.choice(list(TRANSPORTS)) if request.what in ("step", "steps") and not request.key else "http"
        )
        if transport == "http":
            path = f"{self.transports.path}/streams/{request.stream}"
            headers = {"idempotency-key": request.key} if request.key else None
            status, document = await self.transports.http.request(
                request.method,
                port,
                f"{path}/{request.what}" if request.what else path,
                request.body,
                headers,
                timeout,
            )
        else:
            message = {**(request.body or {}), **({"chunk": True} if request.what == "steps" else {})}
            socket = self.transports.single(port, request.stream) if transport == "one" else self.transports.many(port)
            if transport == "many":
                message["stream"] = request.stream
            try:
                status, document = await socket.request(message, timeout)
            except NoAnswerError:
                if self.rng.random() < 0.3:
                    socket.abort()
                raise
        if status == 200 and request.what in ("step", "steps"):
            self.tally.answers[TRANSPORTS[transport]] += 1
        return status, document
