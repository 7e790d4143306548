"""Short runs of the roads campaign: Redis Streams, whose server every machine has.

The whole: python -m campaign roads.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from campaign.roads.broken import run_broken
from campaign.roads.brokers.redis_road import redis_road
from campaign.roads.command import Run
from campaign.roads.groups import run_group
from campaign.roads.history import run_backfill
from campaign.roads.in_order import run_order, run_ticks
from campaign.roads.kill_run import RoadPlan, RoadResult, run_kills
from campaign.roads.restore import run_restore

SHORT = RoadPlan(
    streams=20, steps=100, seed=1, kill_every_s=0.3, replica_every_s=2.0, rebalance_every_s=1.0, service_away_s=1.0,
    faults_s=8.0,
)  # fmt: skip


def is_good(result: RoadResult) -> bool:
    assert result.problems == []
    return True


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_no_message_is_lost_or_doubled_while_connectors_and_replicas_are_killed(short_path: Path) -> None:
    result = await run_kills(short_path, redis_road, SHORT, lambda *_: None)

    assert is_good(result)
    assert result.figures["connector_kills"] > 0


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_no_message_is_lost_or_doubled_while_the_reading_connector_changes(short_path: Path) -> None:
    result = await run_group(short_path, redis_road, SHORT, lambda *_: None)

    assert is_good(result)
    assert result.figures["rebalances"] > 0


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_each_broken_message_is_a_dead_letter_and_the_others_are_unharmed(short_path: Path) -> None:
    result = await run_broken(short_path, redis_road, SHORT, lambda *_: None)

    assert is_good(result)
    assert result.figures["broken"]["10 MB"] == 5
    assert result.figures["dead_letters"] == sum(result.figures["broken"].values())


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_backfill_that_was_killed_goes_on_and_then_live(short_path: Path) -> None:
    plan = dataclasses.replace(SHORT, streams=500, steps=2000)

    assert is_good(await run_backfill(short_path, redis_road, plan, lambda *_: None))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("run", [run_order, run_ticks])
async def test_shuffled_messages_are_applied_by_their_times_or_are_late(short_path: Path, run: Run) -> None:
    if run is run_ticks:
        pytest.importorskip("pandas", reason="pandas is not installed (STEPWELL_EXTRAS=pandas)")
    result = await run(short_path, redis_road, dataclasses.replace(SHORT, kills=1), lambda *_: None)

    assert is_good(result)
    assert (result.figures["connector_kills"], result.figures["replica_kills"]) == (1, 1)


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_the_first_prediction_after_a_kill_is_measured(short_path: Path) -> None:
    result = await run_restore(short_path, redis_road, SHORT, lambda *_: None)

    assert is_good(result)
    assert len(result.figures["20 streams, s"]) == 3
