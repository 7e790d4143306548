"""Live streams as a careful client runs them: every timestep numbered, every doubt resolved by sending it again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.exactly_once.http import Http, NoAnswerError
from tests.graphs import fold_reference

PATIENCE_S = 60.0
TOGETHER = 64  # streams in flight


@dataclass
class Campaign:
    """What was sent and what came back.

    Attributes:
        retried: Requests that had to be sent again, for a lost connection or a 503.
        doubled: Requests that were sent twice on purpose.
        replayed: Answers that were told to be the first one again.
        wrong: Anything that is not as the fold says.
        answered: Timesteps that were answered, copies not counted.
    """

    retried: int = 0
    doubled: int = 0
    replayed: int = 0
    wrong: list[str] = field(default_factory=list)
    answered: int = 0
    _waiting: list[tuple[int, asyncio.Event]] = field(default_factory=list)

    def count(self) -> None:
        """Count a timestep that was answered."""
        self.answered += 1
        for number, reached in self._waiting:
            if self.answered >= number:
                reached.set()

    async def reach(self, number: int) -> None:
        """Wait until so many timesteps were answered."""
        if self.answered < number:
            reached = asyncio.Event()
            self._waiting.append((number, reached))
            await reached.wait()


async def run_streams(
    ports: Sequence[int],
    model: str,
    *,
    streams: int,
    steps: int,
    seed: int,
    twice: float = 0.1,
    campaign: Campaign | None = None,
) -> Campaign:
    """Run streams of the exact fold model, each request to a random process, some of them twice.

    Args:
        ports: The processes.
        model: The fold model's name.
        streams: How many.
        steps: Timesteps of each.
        seed: Of everything random.
        twice: Share of the requests that are sent twice.
        campaign: Where to count; a new one by default.
    """
    campaign = campaign or Campaign()
    rng = random.Random(seed)
    turn = asyncio.Semaphore(TOGETHER)
    http = Http()
    client = Client(http, ports, model, rng, campaign)

    async def live(number: int) -> None:
        xs = [rng.randrange(-(2**40), 2**40) for _ in range(steps)]
        async with turn:
            for seq, (x, y) in enumerate(zip(xs, fold_reference(xs), strict=True), 1):
                await client.step(f"s{number}", {"inputs": [x], "seq": seq}, y, copies=2 if rng.random() < twice else 1)
            _, status = await client.insist("GET", f"/v1/models/{model}/streams/s{number}")
            if status["step"] != steps:
                campaign.wrong.append(f"s{number} ends at {status}")

    try:
        await asyncio.gather(*(live(n) for n in range(streams)))
    finally:
        http.close()
    return campaign


@dataclass
class Client:
    """Sends each request to a random process, and again until one answers it."""

    http: Http
    ports: Sequence[int]
    model: str
    rng: random.Random
    campaign: Campaign

    async def step(self, stream: str, body: dict[str, Any], y: int, *, copies: int) -> None:
        """Send one timestep, maybe in several copies at once, and hold every answer against the fold."""
        path = f"/v1/models/{self.model}/streams/{stream}/step"
        self.campaign.doubled += copies - 1
        answers = await asyncio.gather(*(self.insist("POST", path, body) for _ in range(copies)))
        self.campaign.count()
        for status, answer in answers:
            self.campaign.replayed += bool(answer.get("replayed"))
            if (status, answer.get("outputs"), answer.get("step")) != (200, {"y": [y]}, body["seq"]):
                self.campaign.wrong.append(f"{stream} {body}: expected {y}, got {status} {answer}")

    async def insist(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send a request until a process answers it."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            try:
                status, answer = await self.http.request(method, self.rng.choice(self.ports), path, body)
                if status != 503:
                    return status, answer
            except NoAnswerError:
                pass
            self.campaign.retried += 1
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"{method} {path}: nobody answered for {PATIENCE_S} s")
            await asyncio.sleep(self.rng.uniform(0.01, 0.1))  # back off as a client does
