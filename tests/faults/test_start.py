"""`stepwell serve` refuses to start on an unusable store and names the denied command or the setting."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.graphs import fold, write_model
from tests.processes import LAUNCH
from tests.servers import Server


@pytest.fixture
def account(redis_server: Server) -> str:
    """The URL of a store user with all permissions except the command that loads a batch."""
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "swl", "on", ">secret", "~swl:*", "&swl:*", "+@all", "-mget")
    return f"unix://swl:secret@{redis_server.socket}"


def test_a_store_that_denies_access_is_reported_with_exit_code_3(tmp_path: Path, account: str) -> None:
    write_model(tmp_path / "models", "fold", fold)
    env = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
    command = [*LAUNCH, "--models", str(tmp_path / "models"), "--port", "0", "--redis", account]

    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

    assert done.returncode == 3
    assert "denies the command MGET" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
