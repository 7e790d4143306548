"""A short campaign with every kind of fault, and proof that it fails on deliberately broken builds.

The whole: python -m campaign chaos --minutes 10.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from campaign import mutants
from campaign.chaos import ChaosPlan, run
from campaign.faults import FAULTS
from campaign.tally import Tally

GRPC = "gRPC is not installed: STEPWELL_EXTRAS=grpc"
OVER_GRPC = ["campaign", "chaos", "--transport", "grpc"]
SHORT = ChaosPlan(seconds=14, seed=1, streams=24, fault_every_s=0.8)


async def test_no_promise_is_broken_under_faults(short_path: Path) -> None:
    tally = Tally()
    await run(SHORT, short_path, tally)

    assert not tally.violations, "\n".join(tally.examples())
    assert tally.faults.keys() == FAULTS.keys()
    assert tally.unknown == tally.resolved > 0
    assert tally.steps > 500


@pytest.mark.slow
async def test_no_promise_is_broken_under_faults_over_grpc(short_path: Path) -> None:
    pytest.importorskip("grpc_reflection", reason=GRPC)
    tally = Tally()
    await run(dataclasses.replace(SHORT, seed=3, transport="grpc"), short_path, tally)

    assert not tally.violations, "\n".join(tally.examples())
    assert tally.faults.keys() == FAULTS.keys()
    assert tally.answers.keys() == {"gRPC call", "gRPC stream", "gRPC stream, several on their way"}
    assert tally.unknown == tally.resolved > 0
    assert tally.steps > 500


@pytest.mark.slow
async def test_no_promise_is_broken_while_releases_move_the_streams(short_path: Path) -> None:
    tally = Tally()
    await run(dataclasses.replace(SHORT, seed=2, streams=12, release_every_s=0.3), short_path, tally)

    assert not tally.violations, "\n".join(tally.examples())
    assert tally.moves > 0
    assert tally.releases["promoted"] > 0
    assert tally.releases["aborted"] > 0


def test_without_grpc_the_campaign_refuses_to_run_over_it() -> None:
    run_it = f"import sys; sys.modules['grpc'] = None; sys.argv = {OVER_GRPC}; from campaign.__main__ import app; app()"
    done = subprocess.run([sys.executable, "-c", run_it], capture_output=True, text=True, check=False)

    assert done.returncode == 3
    assert "The packages of gRPC are not installed: no grpc" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("lacks", [name for name in mutants.BROKEN if name != mutants.NEEDS_RELEASES])
async def test_the_campaign_over_grpc_fails_on_a_build_without(lacks: str, short_path: Path) -> None:
    pytest.importorskip("grpc_reflection", reason=GRPC)
    env = mutants.environment(mutants.broken_copy(mutants.BROKEN[lacks], short_path / "broken"))
    tally = Tally()
    plan = dataclasses.replace(SHORT, seconds=240, stop_when_broken=True, transport="grpc")
    await run(plan, short_path, tally, env=env)

    assert tally.violations


@pytest.mark.many
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("lacks", mutants.BROKEN)
async def test_the_campaign_fails_on_a_build_without(lacks: str, short_path: Path) -> None:
    env = mutants.environment(mutants.broken_copy(mutants.BROKEN[lacks], short_path / "broken"))
    tally = Tally()
    releases = {"release_every_s": 0.3} if lacks == mutants.NEEDS_RELEASES else {}
    plan = dataclasses.replace(SHORT, seconds=240, stop_when_broken=True, **releases)  # type: ignore[arg-type]
    await run(plan, short_path, tally, env=env)

    assert tally.violations
