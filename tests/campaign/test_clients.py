"""A short campaign through each client that users have, and proof that it fails on deliberately broken builds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from campaign import mutants
from campaign.chaos import ChaosPlan, Client, run
from campaign.clients import conformance
from campaign.clients.calls import ClientCall, ClientEndedError, NodeCalls
from campaign.faults import FAULTS
from campaign.tally import Tally
from tests.npm import NEEDS_NODE, node_command
from tests.processes import free_port

SHORT: dict[str, float] = {"seconds": 16, "streams": 16, "fault_every_s": 0.8}
LACKS = [name for name in mutants.BROKEN if name != mutants.NEEDS_RELEASES]
needs_node = pytest.mark.skipif(node_command() is None, reason=NEEDS_NODE)
CLIENTS = [pytest.param("typescript", marks=needs_node), "python"]


def plan(client: Client, **more: float) -> ChaosPlan:
    return ChaosPlan(**{"seed": 5, **SHORT, **more}, client=client)  # type: ignore[arg-type]  # the numbers are whole


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
async def test_no_promise_is_broken_through_a_client(client: Client, short_path: Path) -> None:
    tally = Tally()
    await run(plan(client), short_path, tally)

    assert not tally.violations, "\n".join(tally.examples())
    assert tally.faults.keys() == FAULTS.keys()
    assert tally.answers.keys() >= {"HTTP", "feed", "columns"}
    assert tally.answers["requests as they are"] > 0 or client == "python"
    assert tally.unknown == tally.resolved > 0
    assert tally.deliberate["connections of clients reset"] > 0
    assert tally.deliberate["answers to clients lost"] > 0


@pytest.mark.many
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("lacks", LACKS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_the_campaign_through_a_client_fails_on_a_build_without(
    client: Client, lacks: str, short_path: Path
) -> None:
    env = mutants.environment(mutants.broken_copy(mutants.BROKEN[lacks], short_path / "broken"))
    tally = Tally()
    await run(plan(client, seconds=240, stop_when_broken=True), short_path, tally, env=env)

    assert tally.violations


@pytest.mark.slow
async def test_the_conformance_cases_pass_under_faults(short_path: Path) -> None:
    found = conformance.KitResult()
    await conformance.run(short_path, found, seconds=20, seed=7, fault_every_s=0.8)

    assert found.violations == []
    assert found.passed.keys() | found.skipped.keys() == set(conformance.CLIENTS)
    assert sum(found.tally.faults.values()) > 0


@needs_node
async def test_a_call_that_the_client_does_not_have_ends_its_process_with_the_reason(tmp_path: Path) -> None:
    calls = NodeCalls(f"http://127.0.0.1:{free_port()}", tmp_path / "node.log")
    with pytest.raises(ClientEndedError, match="not a function"):
        await calls.make(ClientCall("noSuchMethod", "a"))
    await calls.close()


def test_without_node_the_campaign_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "campaign", "chaos", "--client", "typescript"]
    done = subprocess.run(command, env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True)

    assert done.returncode == 3
    assert NEEDS_NODE in done.stderr
    assert "Traceback" not in done.stderr
