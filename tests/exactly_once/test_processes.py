"""The promise over HTTP, on real processes: every step once, whichever process, also when they are killed."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exactly_once.sequences import run_sequences
from tests.exactly_once.streams import Campaign, run_streams
from tests.graphs import fold, write_model
from tests.processes import Service, service
from tests.servers import AOF, Server, server

# CI runs a part of it; the whole: STEPWELL_CAMPAIGN=1000x100x40, streams x timesteps x kills
STREAMS, STEPS, KILLS = (int(part) for part in os.environ.get("STEPWELL_CAMPAIGN", "200x30x4").split("x"))


@pytest.fixture(params=["on", "off"], ids=["lane", "no lane"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise is kept on both ways through the service."""
    monkeypatch.setenv("STEPWELL_FAST_LANE", request.param)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_model(tmp_path, "fold", fold)
    return tmp_path


@pytest.fixture
def redis(short_path: Path) -> Iterator[Server]:
    with server(short_path / "r", *AOF) as one:
        yield one


async def run_under_kills(services: list[Service], seed: int) -> Campaign:
    """Run the streams while a random process is killed, and started again, each time a part of them is answered."""
    rng, campaign = random.Random(seed), Campaign()
    total = STREAMS * STEPS

    async def kill_now_and_then() -> None:
        for part in range(1, KILLS + 1):
            await campaign.reach(total * part // (KILLS + 1))
            victim = rng.choice(services)
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(victim.start)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kill_now_and_then())
        ports = [one.port for one in services]
        await run_streams(ports, "fold", streams=STREAMS, steps=STEPS, seed=seed, campaign=campaign)
    return campaign


@pytest.mark.usefixtures("both_ways")
@pytest.mark.slow
async def test_random_routing_and_duplicates_equal_the_fold(models: Path, tmp_path: Path, redis: Server) -> None:
    with (
        service(models, tmp_path / "one", "--redis", redis.url) as one,
        service(models, tmp_path / "two", "--redis", redis.url) as two,
    ):
        campaign = await run_streams([one.port, two.port], "fold", streams=STREAMS, steps=STEPS, seed=1, twice=0.1)

    assert campaign.wrong == []
    assert campaign.replayed == campaign.doubled > 0


@pytest.mark.usefixtures("both_ways")
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_killed_replicas_lose_and_double_nothing(models: Path, tmp_path: Path, redis: Server) -> None:
    with (
        service(models, tmp_path / "one", "--redis", redis.url) as one,
        service(models, tmp_path / "two", "--redis", redis.url) as two,
    ):
        campaign = await run_under_kills([one, two], seed=2)

    assert campaign.wrong == []
    assert campaign.answered == STREAMS * STEPS


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_killed_replicas_neither_lose_nor_double_a_start_or_an_end(
    models: Path, tmp_path: Path, redis: Server
) -> None:
    """Sequences of the Open Inference Protocol, whose ids are used again and again."""
    campaign, ids = Campaign(), max(STREAMS // 4, 1)
    with (
        service(models, tmp_path / "one", "--redis", redis.url) as one,
        service(models, tmp_path / "two", "--redis", redis.url) as two,
    ):

        async def kill_now_and_then() -> None:
            victims = [one, two] * max(KILLS // 4, 1)
            for part, victim in enumerate(victims, 1):
                await campaign.reach(ids * 18 * part // (len(victims) + 1))  # of about 22 timesteps for each id
                await asyncio.to_thread(victim.kill)
                await asyncio.to_thread(victim.start)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kill_now_and_then())
            await run_sequences([one.port, two.port], ids=ids, sequences=5, seed=5, campaign=campaign)

    assert campaign.wrong == []
    assert campaign.retried > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_killed_service_goes_on_with_its_embedded_store(models: Path, short_path: Path) -> None:
    with service(models, short_path / "one") as one:
        campaign = await run_under_kills([one], seed=3)

    assert campaign.wrong == []
    assert campaign.retried > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_several_workers_of_one_service_share_every_stream(models: Path, short_path: Path) -> None:
    with service(models, short_path / "one", "--workers", "2") as one:
        campaign = await run_streams([one.port], "fold", streams=STREAMS, steps=STEPS, seed=4, twice=0.1)

    assert campaign.wrong == []
    assert campaign.replayed == campaign.doubled > 0
