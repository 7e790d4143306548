"""Runs streams as a careful client does: each timestep has a `seq`, each unknown outcome is resolved by a retry."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.exactly_once.http import Http, NoAnswerError
from tests.graphs import fold_reference

TIMEOUT_S = 60.0
CONCURRENT_STREAMS = 64


@dataclass
class Campaign:
    """Counts of requests and responses.

    Attributes:
        retried: Requests sent again after a lost connection or a 503.
        duplicated: Requests sent twice on purpose.
        replayed: Responses marked as replayed.
        wrong: Responses that differ from the fold.
        answered: Timesteps answered, not counting copies.
    """

    retried: int = 0
    duplicated: int = 0
    replayed: int = 0
    wrong: list[str] = field(default_factory=list)
    answered: int = 0
    _waiting: list[tuple[int, asyncio.Event]] = field(default_factory=list)

    def count(self) -> None:
        """Count an answered timestep."""
        self.answered += 1
        for number, reached in self._waiting:
            if self.answered >= number:
                reached.set()

    async def wait_for_answered(self, number: int) -> None:
        """Wait until `number` timesteps are answered."""
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
    """Run streams of the fold model; each request goes to a random process, some are sent twice.

    Args:
        ports: Ports of the processes.
        model: The fold model's name.
        streams: Number of streams.
        steps: Timesteps per stream.
        seed: Seed of all random choices.
        twice: Share of the requests that are sent twice.
        campaign: Counts, a new one by default.
    """
    campaign = campaign or Campaign()
    rng = random.Random(seed)
    slots = asyncio.Semaphore(CONCURRENT_STREAMS)
    http = Http()
    client = RetryingClient(http, ports, model, rng, campaign)

    async def run_stream(number: int) -> None:
        xs = [rng.randrange(-(2**40), 2**40) for _ in range(steps)]
        async with slots:
            for seq, (x, y) in enumerate(zip(xs, fold_reference(xs), strict=True), 1):
                await client.step(f"s{number}", {"inputs": [x], "seq": seq}, y, copies=2 if rng.random() < twice else 1)
            _, status = await client.send_until_answered("GET", f"/v1/models/{model}/streams/s{number}")
            if status["step"] != steps:
                campaign.wrong.append(f"s{number} ends at {status}")

    try:
        await asyncio.gather(*(run_stream(n) for n in range(streams)))
    finally:
        http.close()
    return campaign


@dataclass
class RetryingClient:
    """Sends each request to a random process, and retries until one answers."""

    http: Http
    ports: Sequence[int]
    model: str
    rng: random.Random
    campaign: Campaign

    async def step(self, stream: str, body: dict[str, Any], y: int, *, copies: int) -> None:
        """Send one timestep, possibly in several concurrent copies, and compare every response with the fold."""
        path = f"/v1/models/{self.model}/streams/{stream}/step"
        self.campaign.duplicated += copies - 1
        answers = await asyncio.gather(*(self.send_until_answered("POST", path, body) for _ in range(copies)))
        self.campaign.count()
        for status, answer in answers:
            self.campaign.replayed += bool(answer.get("replayed"))
            if (status, answer.get("outputs"), answer.get("step")) != (200, {"y": [y]}, body["seq"]):
                self.campaign.wrong.append(f"{stream} {body}: expected {y}, got {status} {answer}")

    async def send_until_answered(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send a request, and retry until a process answers it."""
        deadline = asyncio.get_running_loop().time() + TIMEOUT_S
        while True:
            try:
                status, answer = await self.http.request(method, self.rng.choice(self.ports), path, body)
                if status != 503:
                    return status, answer
            except NoAnswerError:
                pass
            self.campaign.retried += 1
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"{method} {path}: no answer for {TIMEOUT_S} s")
            await asyncio.sleep(self.rng.uniform(0.01, 0.1))  # back off as a client does
