"""`Client(":memory:")`: an engine in this process that starts with its client and ends with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepwell.settings import PREFIX
from stepwell_client import AsyncClient, Client, ClientError, Event, StepResult
from stepwell_export.runtime.errors import StepwellError
from tests.graphs import fold, fold_reference, write_model, write_models
from tests.processes import is_running
from tests.python_client.transports import engine_in_process

XS = [[x] for x in range(20)]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return write_models(tmp_path / "models", fold)


def ys(answers: list[StepResult]) -> list[int]:
    return [int(answer.output[-1]) for answer in answers]


def pid_of_store(folder: Path) -> int:
    return int((folder / "data" / "store.pid").read_text())


def code_of(call: Callable[[], Any]) -> str:
    """Return the code of a call's error; an empty text if there is none."""
    try:
        call()
    except ClientError as exc:
        return exc.code
    return ""


def folder_of(url: str) -> Path:
    return Path(url.removeprefix("unix://")).parent


def test_a_client_steps_a_model_of_a_folder(models: Path) -> None:
    """With the check of model files that `serve` has."""
    with Client(":memory:", models=models) as client:
        handle = client.model("fold").stream("a")

        assert ys([handle.step(x) for x in XS]) == fold_reference(range(20))


async def test_an_asyncio_client_does_so_too_also_over_a_feed(models: Path) -> None:
    async with AsyncClient(":memory:", models=[models], settings={"model_probe_s": 0}) as client:
        async with client.model("fold").feed() as feed:
            answers = [await feed.step("a", x) for x in XS]

        assert ys(answers) == fold_reference(range(20))
        assert (await client.model("fold").stream("a").status()).step == 20


def test_the_models_are_in_the_folder_models_and_settings_are_those_of_the_call(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of the environment."""
    monkeypatch.chdir(models.parent)
    monkeypatch.setenv(f"{PREFIX}REDIS", "redis://127.0.0.1:1")

    with Client(":memory:", settings={"model_probe_s": 0, "durability": "fsync"}) as client:
        assert client.model("fold").stream("a").step([7]).step == 1


def test_two_engines_share_nothing(models: Path) -> None:
    with engine_in_process(models) as one, engine_in_process(models) as other:
        one.model("fold").stream("a").step([7])

        assert other.model("fold").stream("a").resume() == 0


def test_a_model_that_is_exported_later_is_served(models: Path) -> None:
    with engine_in_process(models) as client:
        write_model(models, "later", fold)
        stream, pause = client.model("later").stream("a"), threading.Event()
        while (found := code_of(lambda: stream.step([7]))) == "model_not_found":
            pause.wait(0.05)

    assert found == ""


def test_the_end_of_the_client_is_the_end_of_its_engine(models: Path) -> None:
    with engine_in_process(models) as client:
        folder, threads = folder_of(client.url), threading.active_count()
        pid = pid_of_store(folder)
        assert is_running(pid)

    assert (folder.exists(), is_running(pid)) == (False, False)
    assert threading.active_count() < threads
    client.close()  # again: no effect


def test_the_end_of_the_program_is_the_end_of_an_engine_that_nobody_closed(models: Path) -> None:
    code = f"import stepwell; client = stepwell.Client(':memory:', models={str(models)!r}); print("
    code += "client.url, client.model('fold').stream('a').step([7]).step)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    url, step = done.stdout.split()
    assert (done.returncode, done.stderr, step) == (0, "", "1")
    assert not folder_of(url).exists()


def test_closing_the_client_ends_a_watch(models: Path) -> None:
    with engine_in_process(models, history="8") as client:
        handle = client.model("fold").stream("a")
        handle.step([7])
        watch = handle.watch(since=0)
        assert isinstance(next(watch), Event)
        ended = threading.Thread(target=lambda: list(watch), daemon=True)
        ended.start()
    ended.join(10)

    assert not ended.is_alive()


async def test_an_engine_serves_clients_of_several_event_loops(models: Path) -> None:
    with engine_in_process(models) as owner:

        async def steps(name: str) -> list[StepResult]:
            async with AsyncClient(owner.url) as client:
                return [await client.model("fold").stream(name).step(x) for x in XS]

        found = await asyncio.gather(
            steps("a"), asyncio.to_thread(asyncio.run, steps("b")), asyncio.to_thread(asyncio.run, steps("c"))
        )

    assert [ys(answers) for answers in found] == [fold_reference(range(20))] * 3


def test_an_engine_whose_store_is_killed_goes_on(models: Path) -> None:
    with engine_in_process(models) as client:
        handle = client.model("fold").stream("a")
        answers = [handle.step(x) for x in XS[:10]]
        os.kill(pid_of_store(folder_of(client.url)), signal.SIGKILL)
        answers += [handle.step(x) for x in XS[10:]]

    assert ys(answers) == fold_reference(range(20))


# -------------------------------------------------------------------- what is refused


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"models": "modles"}, "modles is not there; expected a folder"),
    ({"models": __file__}, "is a file; expected a folder"),
    ({"models": ".", "settings": {"history": "many"}}, "neither MODEL=N nor N"),
    ({"models": ".", "settings": {"historie": "8"}}, "historie"),
    ({"models": ".", "settings": {"redis": "redis://h", "port": 1}}, "The settings have port, redis"),
]


def test_an_engine_that_cannot_start_is_an_error_with_its_reason() -> None:
    for arguments, words in REFUSED:
        with pytest.raises(StepwellError, match=words):
            Client(":memory:", **arguments)


def test_models_of_a_service_elsewhere_are_refused() -> None:
    with pytest.raises(ClientError, match="which has its own"):
        Client("http://127.0.0.1:8000", models="models")
