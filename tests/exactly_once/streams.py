"""Live streams as a careful client runs them: every timestep numbered, every doubt resolved by sending it again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from tests.graphs import fold_reference

PATIENCE_S = 60.0


@dataclass
class Campaign:
    """What was sent and what came back.

    Attributes:
        retried: Requests that had to be sent again, for a lost connection or a 503.
        doubled: Requests that were sent twice on purpose.
        replayed: Answers that were told to be the first one again.
        wrong: Anything that is not as the fold says.
    """

    retried: int = 0
    doubled: int = 0
    replayed: int = 0
    wrong: list[str] = field(default_factory=list)


async def run_streams(
    urls: Sequence[str], model: str, *, streams: int, steps: int, seed: int, together: int, twice: float = 0.1
) -> Campaign:
    """Run streams of the exact fold model, each request to a random process, some of them twice.

    Args:
        urls: The processes.
        model: The fold model's name.
        streams: How many.
        steps: Timesteps of each.
        seed: Of everything random.
        together: Streams in flight at once.
        twice: Share of the requests that are sent twice.
    """
    campaign = Campaign()
    rng = random.Random(seed)
    turn = asyncio.Semaphore(together)
    limits = httpx.Limits(max_connections=2 * together, max_keepalive_connections=together)
    async with httpx.AsyncClient(limits=limits, timeout=15, trust_env=False) as http:

        async def live(number: int) -> None:
            xs = [rng.randrange(-(2**40), 2**40) for _ in range(steps)]
            async with turn:
                for seq, (x, y) in enumerate(zip(xs, fold_reference(xs), strict=True), 1):
                    await one_step(
                        http, urls, model, f"s{number}", {"inputs": [x], "seq": seq}, y, rng, campaign, twice
                    )
                status = (
                    await insist(http, "GET", urls, f"/v1/models/{model}/streams/s{number}", None, rng, campaign)
                ).json()
                if status["step"] != steps:
                    campaign.wrong.append(f"s{number} ends at {status}")

        await asyncio.gather(*(live(n) for n in range(streams)))
    return campaign


async def one_step(
    http: httpx.AsyncClient,
    urls: Sequence[str],
    model: str,
    stream: str,
    body: dict[str, object],
    y: int,
    rng: random.Random,
    campaign: Campaign,
    twice: float,
) -> None:
    """Send one timestep, maybe twice at once, and hold every answer against the fold."""
    path = f"/v1/models/{model}/streams/{stream}/step"
    copies = 2 if rng.random() < twice else 1
    campaign.doubled += copies - 1
    for response in await asyncio.gather(
        *(insist(http, "POST", urls, path, body, rng, campaign) for _ in range(copies))
    ):
        answer = response.json()
        campaign.replayed += bool(answer.get("replayed"))
        if (response.status_code, answer.get("outputs"), answer.get("step")) != (200, {"y": [y]}, body["seq"]):
            campaign.wrong.append(f"{stream} {body}: expected {y}, got {response.status_code} {answer}")


async def insist(
    http: httpx.AsyncClient,
    method: str,
    urls: Sequence[str],
    path: str,
    body: dict[str, object] | None,
    rng: random.Random,
    campaign: Campaign,
) -> httpx.Response:
    """Send a request until a process answers it, each time to a random one."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        try:
            response = await http.request(method, rng.choice(urls) + path, json=body)
            if response.status_code != 503:
                return response
        except httpx.TransportError:
            pass
        campaign.retried += 1
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"{method} {path}: nobody answered for {PATIENCE_S} s")
        await asyncio.sleep(rng.uniform(0.01, 0.1))  # back off as a client does
