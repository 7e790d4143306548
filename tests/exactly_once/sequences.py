"""Runs sequences as Triton's clients do: ids are reused, and every unknown outcome is resolved by a retry."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from tests.exactly_once.http import Http
from tests.exactly_once.streams import CONCURRENT_STREAMS, Campaign, RetryingClient
from tests.graphs import fold_reference


async def run_sequences(
    ports: Sequence[int], *, ids: int, sequences: int, seed: int, twice: float = 0.2, campaign: Campaign | None = None
) -> Campaign:
    """Run sequences of the fold model, one after the other under each id; each request goes to a random process.

    A sequence has 1 to 8 timesteps; some are never ended, so that the next start replaces them. Each request has an
    idempotency key, and some are sent twice, concurrently or one after the other.

    Args:
        ports: Ports of the processes.
        ids: Number of sequence ids.
        sequences: Number of sequences per id.
        seed: Seed of all random choices.
        twice: Share of the requests that are sent twice.
        campaign: Counts, a new one by default.
    """
    campaign = campaign or Campaign()
    rng = random.Random(seed)
    slots = asyncio.Semaphore(CONCURRENT_STREAMS)
    http = Http()

    client = RetryingClient(http, ports, "fold", rng, campaign)

    async def send(x: int, parameters: dict[str, Any]) -> dict[str, Any]:
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [x]}], "parameters": parameters}
        status, answer = await client.send_until_answered("POST", "/v2/models/fold/infer", body)
        return {"status": status, **answer}

    async def step(x: int, y: int, parameters: dict[str, Any]) -> None:
        answers = [await send(x, parameters)]
        if rng.random() < twice:
            campaign.duplicated += 1
            answers += await asyncio.gather(*(send(x, parameters) for _ in range(2)))
        for answer in answers:
            found = answer["outputs"][0]["data"] if answer["status"] == 200 else answer
            if found != [y]:
                campaign.wrong.append(f"{parameters}: {found}; expected {y}")
        campaign.count()

    async def run_id(name: int) -> None:
        async with slots:
            for number in range(sequences):
                length, ends = rng.randint(1, 8), rng.random() < 0.7
                xs = [rng.randrange(-(2**40), 2**40) for _ in range(length)]
                for at, (x, y) in enumerate(zip(xs, fold_reference(xs), strict=True)):
                    flags = {"sequence_start": at == 0, "sequence_end": ends and at == length - 1}
                    key = {"idempotency_key": f"{name}-{number}-{at}"}
                    await step(x, y, {"sequence_id": name, "step": at + 1, **flags, **key})
                if ends and (late := await send(1, {"sequence_id": name}))["status"] != 400:
                    campaign.wrong.append(f"sequence {name} continues after its end: {late}")

    async with asyncio.TaskGroup() as tasks:
        for name in range(1, ids + 1):
            tasks.create_task(run_id(name))
    http.close()
    return campaign
