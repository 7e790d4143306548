"""Live sequences as Triton's clients run them, reusing their ids, with every doubt resolved by sending it again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from tests.exactly_once.http import Http, NoAnswerError
from tests.exactly_once.streams import PATIENCE_S, TOGETHER, Campaign
from tests.graphs import fold_reference


async def run_sequences(
    ports: Sequence[int], *, ids: int, sequences: int, seed: int, twice: float = 0.2, campaign: Campaign | None = None
) -> Campaign:
    """Run sequences of the exact fold model, one after the other under each id, each request to a random process.

    A sequence has 1 to 8 timesteps; some are left without an end, so that the next one starts over them. Requests are
    named by a key, and some are sent twice, at once or one after the other.

    Args:
        ports: The processes.
        ids: How many sequence ids there are.
        sequences: How many sequences each id has.
        seed: Of everything random.
        twice: Share of the requests that are sent twice.
        campaign: Where to count; a new one by default.
    """
    campaign = campaign or Campaign()
    rng = random.Random(seed)
    turn = asyncio.Semaphore(TOGETHER)
    http = Http()

    async def ask(x: int, parameters: dict[str, Any]) -> dict[str, Any]:
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [x]}], "parameters": parameters}
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    status, answer = await http.request("POST", rng.choice(ports), "/v2/models/fold/infer", body)
                except NoAnswerError:
                    campaign.retried += 1
                    await asyncio.sleep(0.05)
                    continue
                if status != 503:
                    return {"status": status, **answer}
                campaign.retried += 1
                await asyncio.sleep(0.05)

    async def step(x: int, y: int, parameters: dict[str, Any]) -> None:
        answers = [await ask(x, parameters)]
        if rng.random() < twice:
            campaign.doubled += 1
            answers += await asyncio.gather(*(ask(x, parameters) for _ in range(2)))
        for answer in answers:
            found = answer["outputs"][0]["data"] if answer["status"] == 200 else answer
            if found != [y]:
                campaign.wrong.append(f"{parameters}: {found}; expected {y}")
        campaign.count()

    async def live(name: int) -> None:
        async with turn:
            for number in range(sequences):
                length, ends = rng.randint(1, 8), rng.random() < 0.7
                xs = [rng.randrange(-(2**40), 2**40) for _ in range(length)]
                for at, (x, y) in enumerate(zip(xs, fold_reference(xs), strict=True)):
                    flags = {"sequence_start": at == 0, "sequence_end": ends and at == length - 1}
                    key = {"idempotency_key": f"{name}-{number}-{at}"}
                    await step(x, y, {"sequence_id": name, "step": at + 1, **flags, **key})
                if ends and (late := await ask(1, {"sequence_id": name}))["status"] != 400:
                    campaign.wrong.append(f"sequence {name} goes on after its end: {late}")

    async with asyncio.TaskGroup() as tasks:
        for name in range(1, ids + 1):
            tasks.create_task(live(name))
    http.close()
    return campaign
