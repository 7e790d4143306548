"""Short runs of the long scenarios: moving slots under load, kills, and recovery times after a fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.scenarios import kills, recovery, reshard, restarts


async def test_moving_slots_under_load_changes_no_prediction(short_path: Path) -> None:
    found = await reshard(short_path, share=0.005, streams=20)

    assert found["wrong"] == []
    assert found["acknowledged and lost"] == 0
    assert found["slots moved"] >= 80


async def test_killing_a_store_with_fsync_loses_nothing(short_path: Path) -> None:
    found = await kills(short_path, times=2, between=200)

    assert (found["wrong"], found["acknowledged and lost"]) == ([], 0)


@pytest.mark.slow
async def test_replicas_that_are_restarted_reset_no_connection(short_path: Path) -> None:
    """Nor do they fail a request of clients that never send one again."""
    found = await restarts(short_path, times=2)

    assert (found["wrong"], found["requests failed"], found["connections reset"]) == ([], 0, 0)


@pytest.mark.slow
def test_streams_continue_soon_after_a_killed_replica_and_after_a_network_cut(short_path: Path) -> None:
    assert recovery(short_path)["wrong"] == []
