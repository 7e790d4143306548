"""A short campaign with every kind of fault, and proof that it fails on deliberately broken builds.

The whole: python -m campaign chaos --minutes 10.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from campaign import mutants
from campaign.chaos import ChaosPlan, run
from campaign.faults import FAULTS
from campaign.tally import Tally

SHORT = ChaosPlan(seconds=14, seed=1, streams=24, fault_every_s=0.8)


@pytest.mark.slow
async def test_no_promise_is_broken_under_faults(short_path: Path) -> None:
    tally = Tally()
    await run(SHORT, short_path, tally)

    assert tally.violations == []
    assert tally.faults.keys() == FAULTS.keys()
    assert tally.unknown == tally.resolved > 0
    assert tally.steps > 500


@pytest.mark.slow
async def test_no_promise_is_broken_while_releases_move_the_streams(short_path: Path) -> None:
    tally = Tally()
    await run(dataclasses.replace(SHORT, seed=2, streams=12, release_every_s=0.3), short_path, tally)

    assert tally.violations == []
    assert tally.moves > 0
    assert tally.releases["promoted"] > 0
    assert tally.releases["aborted"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("lacks", mutants.BROKEN)
async def test_the_campaign_fails_on_a_build_without(lacks: str, short_path: Path) -> None:
    env = mutants.environment(mutants.broken_copy(mutants.BROKEN[lacks], short_path / "broken"))
    tally = Tally()
    releases = {"release_every_s": 0.3} if lacks == mutants.NEEDS_RELEASES else {}
    plan = dataclasses.replace(SHORT, seconds=60, stop_when_broken=True, **releases)  # type: ignore[arg-type]
    await run(plan, short_path, tally, env=env)

    assert tally.violations
