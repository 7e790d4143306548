"""Exactly once over HTTP, on real processes: each step is applied once, also when processes are killed."""

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
from tests.processes import ServiceProcess, service_process
from tests.servers import AOF, Server, server

# CI runs a part; everything: STEPWELL_CAMPAIGN=1000x100x40, streams x timesteps x kills
STREAMS, STEPS, KILLS = (int(part) for part in os.environ.get("STEPWELL_CAMPAIGN", "100x30x4").split("x"))


@pytest.fixture(params=["on", "off"], ids=["lane", "no lane"])
def with_and_without_fast_lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the fast lane and without it."""
    monkeypatch.setenv("STEPWELL_FAST_LANE", request.param)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_model(tmp_path, "fold", fold)
    return tmp_path


@pytest.fixture
def redis(short_path: Path) -> Iterator[Server]:
    with server(short_path / "r", *AOF) as one:
        yield one


async def run_under_kills(services: list[ServiceProcess], seed: int) -> Campaign:
    """Run the streams; each time a share of them is answered, kill a random process and start it again."""
    rng, campaign = random.Random(seed), Campaign()
    total = STREAMS * STEPS

    async def kill_periodically() -> None:
        for part in range(1, KILLS + 1):
            await campaign.wait_for_answered(total * part // (KILLS + 1))
            victim = rng.choice(services)
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(victim.start)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kill_periodically())
        ports = [one.port for one in services]
        await run_streams(ports, "fold", streams=STREAMS, steps=STEPS, seed=seed, campaign=campaign)
    return campaign


@pytest.mark.usefixtures("with_and_without_fast_lane")
@pytest.mark.timeout(900)
async def test_killed_replicas_lose_and_duplicate_nothing(models: Path, tmp_path: Path, redis: Server) -> None:
    with (
        service_process(models, tmp_path / "one", "--redis", redis.url) as one,
        service_process(models, tmp_path / "two", "--redis", redis.url) as two,
    ):
        campaign = await run_under_kills([one, two], seed=2)

    assert campaign.wrong == []
    assert campaign.answered == STREAMS * STEPS


@pytest.mark.timeout(900)
async def test_killed_replicas_neither_lose_nor_duplicate_a_start_or_an_end(
    models: Path, tmp_path: Path, redis: Server
) -> None:
    """Sequences of the Open Inference Protocol, whose ids are reused many times."""
    campaign, ids = Campaign(), max(STREAMS // 4, 1)
    with (
        service_process(models, tmp_path / "one", "--redis", redis.url) as one,
        service_process(models, tmp_path / "two", "--redis", redis.url) as two,
    ):

        async def kill_periodically() -> None:
            victims = [one, two] * max(KILLS // 4, 1)
            for part, victim in enumerate(victims, 1):
                await campaign.wait_for_answered(ids * 18 * part // (len(victims) + 1))  # of about 22 timesteps per id
                await asyncio.to_thread(victim.kill)
                await asyncio.to_thread(victim.start)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kill_periodically())
            await run_sequences([one.port, two.port], ids=ids, sequences=5, seed=5, campaign=campaign)

    assert campaign.wrong == []
    assert campaign.retried > 0


@pytest.mark.timeout(900)
async def test_a_killed_service_continues_with_its_embedded_store(models: Path, short_path: Path) -> None:
    with service_process(models, short_path / "one") as one:
        campaign = await run_under_kills([one], seed=3)

    assert campaign.wrong == []
    assert campaign.retried > 0


@pytest.mark.timeout(900)
async def test_several_workers_of_one_service_share_every_stream(models: Path, short_path: Path) -> None:
    with service_process(models, short_path / "one", "--workers", "2") as one:
        campaign = await run_streams([one.port], "fold", streams=STREAMS, steps=STEPS, seed=4, twice=0.1)

    assert campaign.wrong == []
    assert campaign.replayed == campaign.duplicated > 0
