"""`Client`: asks a random worker by a random door, and again until it knows what became of its request."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from campaign.doors import Doors
from campaign.tally import Tally
from tests.exactly_once.http import NoAnswerError

PATIENCE_S = 60.0
DOORS = {"http": "HTTP", "one": "WebSocket of a stream", "many": "WebSocket of a model"}
_TIMEOUT_S = 5.0
_IMPATIENT = 0.05  # share of the requests that are given up early, their connection with them


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of one stream.

    Attributes:
        stream: Its name.
        what: `step`, `steps`, `reset` and so on; empty: where does it stand.
        body: As on the wire.
        key: The Idempotency-Key.
        method: HTTP's.
    """

    stream: str
    what: str
    body: dict[str, Any] | None = None
    key: str | None = None
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker said.

    Attributes:
        status: As HTTP has it.
        document: The answer, or the problem.
        sent: When the request was sent first, on the loop's clock.
        answered: When this answer came.
    """

    status: int
    document: dict[str, Any]
    sent: float
    answered: float

    @property
    def code(self) -> str:
        """The problem's code, or `ok`."""
        return str(self.document.get("code", "ok"))

    def same_as(self, other: Answer) -> bool:
        """Whether two answers are the same step's."""
        names = ("outputs", "step", "state_id", "code")
        return [self.document.get(name) for name in names] == [other.document.get(name) for name in names]


class Client:
    """Asks, and asks again."""

    def __init__(self, doors: Doors, rng: random.Random, tally: Tally) -> None:
        self.doors = doors
        self.rng = rng
        self.tally = tally

    async def step(
        self, stream: str, xs: Sequence[int], *, key: str | None = None, copies: int = 1, **named: Any
    ) -> Answer:
        """Send a step or chunk, maybe in several copies at once; hold the answers against each other."""
        what = "step" if len(xs) == 1 else "steps"
        inputs = [xs[0]] if len(xs) == 1 else [[x] for x in xs]
        request = Request(stream, what, {"inputs": {"x": inputs}, **named}, key)
        self.tally.tricks["copies"] += copies - 1
        answers = await asyncio.gather(*(self.insist(request) for _ in range(copies)))
        first = min(answers, key=lambda answer: answer.answered)
        for answer in answers:
            if not answer.same_as(first):
                self.tally.blame("wrong", f"{stream} {request.body}: told {first.document}, then {answer.document}")
        if sum(answer.status == 200 and not answer.document.get("replayed") for answer in answers) > 1:
            self.tally.blame("doubled", f"{stream} {request.body}: {copies} copies, more than one told as the first")
        return first

    async def insist(self, request: Request) -> Answer:
        """Send a request until an answer says what became of it."""
        loop = asyncio.get_running_loop()
        sent, unknown = loop.time(), False
        while loop.time() < sent + PATIENCE_S:
            try:
                status, document = await self._send(request)
            except NoAnswerError:
                unknown = True
            else:
                if status not in (429, 503):
                    self.tally.resolved += unknown
                    self.tally.unknown += unknown
                    self.tally.replayed += bool(document.get("replayed"))
                    return Answer(status, document, sent, loop.time())
                unknown = unknown or document["applied"] != "no"
            self.tally.asked_again += 1
            await asyncio.sleep(self.rng.uniform(0.01, 0.1))  # back off as a client does
        self.tally.unknown += unknown
        self.tally.blame("unresolved", f"{request}: nobody said what became of it for {PATIENCE_S:.0f} s")
        return Answer(0, {"code": "unresolved"}, sent, loop.time())

    async def _send(self, request: Request) -> tuple[int, dict[str, Any]]:
        """Send a request once, by any door that takes it."""
        port = self.rng.choice(self.doors.ports)
        timeout = self.rng.uniform(0.005, 0.1) if self.rng.random() < _IMPATIENT else _TIMEOUT_S
        door = self.rng.choice(list(DOORS)) if request.what in ("step", "steps") and not request.key else "http"
        if door == "http":
            path = f"{self.doors.path}/streams/{request.stream}"
            headers = {"idempotency-key": request.key} if request.key else None
            status, document = await self.doors.http.request(
                request.method,
                port,
                f"{path}/{request.what}" if request.what else path,
                request.body,
                headers,
                timeout,
            )
        else:
            message = {**(request.body or {}), **({"chunk": True} if request.what == "steps" else {})}
            socket = self.doors.single(port, request.stream) if door == "one" else self.doors.many(port)
            if door == "many":
                message["stream"] = request.stream
            try:
                status, document = await socket.ask(message, timeout)
            except NoAnswerError:
                if self.rng.random() < 0.3:
                    socket.cut()
                raise
        if status == 200 and request.what in ("step", "steps"):
            self.tally.answers[DOORS[door]] += 1
        return status, document
