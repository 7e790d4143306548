"""The cases of `clients/conformance.json`, run over plain HTTP, by the Python client and by the TypeScript client."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.sync.client import connect

from stepwell_client import AsyncClient
from tests.all_clients.kit import FILE, KIT, PATH, Case
from tests.all_clients.model import doubling
from tests.all_clients.python_kit import PythonKit
from tests.faults.proxy import Proxy
from tests.graphs import write_models
from tests.processes import ServiceProcess
from tests.python_client.transports import engine_in_process

TYPESCRIPT = FILE.parent / "typescript"


@contextlib.contextmanager
def named(case: dict[str, Any]) -> Iterator[None]:
    """Add the case's name to an error."""
    try:
        yield
    except BaseException as exc:
        exc.add_note(f"The case is: {case['name']}.")
        raise


# -------------------------------------------------------------------- plain HTTP and WebSocket


@pytest.fixture(scope="module")
def http(one: ServiceProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=one.url, timeout=30) as client:
        yield client


def test_the_service_answers_requests_as_the_cases_expect(http: httpx2.Client) -> None:
    for case in KIT["http"]:
        with named(case):
            send_all(http, Case(case))


def send_all(http: httpx2.Client, run: Case) -> None:
    """Send the requests of a case, and check the answers."""
    for action in run.case["do"]:
        method, path, body, key = run.request(action)
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
        content = None if body is None else json.dumps(body)

        response = http.request(method, path, content=content, headers=headers)

        assert response.is_error == ("error" in action), response.text
        run.check(action, response.json() if response.content else {})


def test_a_feed_answers_messages_as_the_cases_expect(one: ServiceProcess) -> None:
    for case in KIT["feed"]:
        run = Case(case)
        answers: dict[str, list[Any]] = {}
        with named(case), connect(f"ws://127.0.0.1:{one.port}{PATH}/feed") as feed:
            for message in case["messages"]:
                feed.send(json.dumps(run.fill(message)))
            for _ in case["messages"]:
                answer = json.loads(feed.recv())
                answers.setdefault(answer["stream"], []).append(answer)

            run.check(case, answers)


def test_a_watch_sends_what_the_cases_expect(one: ServiceProcess, http: httpx2.Client) -> None:
    for case in KIT["watch"]:
        run = Case(case)
        with named(case), connect(f"ws://127.0.0.1:{one.port}{case['path']}") as watch:
            watch.send(json.dumps(run.fill(case["request"])))
            messages = [json.loads(watch.recv(timeout=60))]
            send_all(http, run)
            messages += [json.loads(watch.recv(timeout=60)) for _ in case["expect"][1:]]

            run.check(case, messages)


# -------------------------------------------------------------------- the Python client


@pytest.fixture
def proxy(one: ServiceProcess) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", one.port)) as running:
        yield running


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"http://127.0.0.1:{proxy.port}") as made:
        yield made


async def test_the_python_client_reads_answers_as_the_cases_expect(client: AsyncClient) -> None:
    for case in KIT["http"]:
        with named(case):
            await PythonKit(client).run_requests(Case(case))


@pytest.mark.parametrize("by_feed", [False, True], ids=["http", "feed"])
async def test_the_python_client_behaves_as_the_cases_expect(
    client: AsyncClient, proxy: Proxy, *, by_feed: bool
) -> None:
    def lose_answer(request: bytes) -> None:
        proxy.lose_reply(to=request)

    for case in KIT["client"]:
        before = proxy.lost
        with named(case):
            await PythonKit(client, by_feed=by_feed, lose_answer=lose_answer).run_calls(Case(case))

            assert proxy.lost - before == sum("lose_answer" in action for action in case["do"])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with engine_in_process(write_models(tmp_path_factory.mktemp("models"), doubling)) as running:
        yield running.url


@pytest.mark.parametrize("by_feed", [False, True], ids=["step", "feed"])
async def test_the_python_client_behaves_so_in_its_own_process(engine: str, *, by_feed: bool) -> None:
    """No answer is lost on this way; the cases in which one is lost are run as if there had been a repetition."""
    async with AsyncClient(engine) as client:
        for case in KIT["client"]:
            with named(case):
                run = Case(case, under_faults="lose_answer" in json.dumps(case))
                await PythonKit(client, by_feed=by_feed).run_calls(run)


# -------------------------------------------------------------------- the TypeScript client


@pytest.mark.parametrize("flags", [[], ["--feed"]], ids=["http", "feed"])
def test_the_typescript_client_behaves_as_the_cases_expect(
    one: ServiceProcess, node: list[str], flags: list[str]
) -> None:
    command = [*node, str(TYPESCRIPT / "conformance.mjs"), one.url, str(FILE), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]

    assert len(results) == len(KIT["http"]) + len(KIT["client"]), done.stderr
    assert [result for result in results if result["error"]] == []


def test_a_difference_is_found(tmp_path: Path, one: ServiceProcess, node: list[str]) -> None:
    wrong = {
        "model": KIT["model"],
        "http": [],
        "feed": [],
        "watch": [],
        "client": [KIT["client"][0] | {"do": [{"call": "step", "inputs": [1], "expect": {"outputs": {"y": [2]}}}]}],
    }
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))

    command = [*node, str(TYPESCRIPT / "conformance.mjs"), one.url, str(tmp_path / "wrong.json")]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 1
    assert "it.outputs.y[0] is 1, expected 2" in json.loads(done.stdout)["error"]
