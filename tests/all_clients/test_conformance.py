"""The cases of `clients/conformance.json`, run over plain HTTP, by the Python client and by the TypeScript client."""

from __future__ import annotations

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


def cases(section: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", KIT[section], ids=[case["name"] for case in KIT[section]])


# -------------------------------------------------------------------- plain HTTP and WebSocket


@pytest.fixture(scope="module")
def http(one: ServiceProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=one.url, timeout=30) as client:
        yield client


@cases("http")
def test_the_service_answers_requests_as_the_case_expects(http: httpx2.Client, case: dict[str, Any]) -> None:
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


@cases("feed")
def test_a_feed_answers_messages_as_the_case_expects(one: ServiceProcess, case: dict[str, Any]) -> None:
    run = Case(case)
    answers: dict[str, list[Any]] = {}
    with connect(f"ws://127.0.0.1:{one.port}{PATH}/feed") as feed:
        for message in case["messages"]:
            feed.send(json.dumps(run.fill(message)))
        for _ in case["messages"]:
            answer = json.loads(feed.recv())
            answers.setdefault(answer["stream"], []).append(answer)

    run.check(case, answers)


@cases("watch")
def test_a_watch_sends_what_the_case_expects(one: ServiceProcess, http: httpx2.Client, case: dict[str, Any]) -> None:
    run = Case(case)
    with connect(f"ws://127.0.0.1:{one.port}{case['path']}") as watch:
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


@cases("http")
async def test_the_python_client_reads_answers_as_the_case_expects(client: AsyncClient, case: dict[str, Any]) -> None:
    await PythonKit(client).run_requests(Case(case))


@pytest.mark.parametrize("by_feed", [False, True], ids=["http", "feed"])
@cases("client")
async def test_the_python_client_behaves_as_the_case_expects(
    client: AsyncClient, proxy: Proxy, case: dict[str, Any], *, by_feed: bool
) -> None:
    def lose_answer(request: bytes) -> None:
        proxy.lose_reply(to=request)

    await PythonKit(client, by_feed=by_feed, lose_answer=lose_answer).run_calls(Case(case))

    assert proxy.lost == sum("lose_answer" in action for action in case["do"])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with engine_in_process(write_models(tmp_path_factory.mktemp("models"), doubling)) as running:
        yield running.url


@pytest.mark.parametrize("by_feed", [False, True], ids=["step", "feed"])
@cases("client")
async def test_the_python_client_behaves_so_in_its_own_process(
    engine: str, case: dict[str, Any], *, by_feed: bool
) -> None:
    """No answer is lost on this way; the cases in which one is lost are run as if there had been a repetition."""
    async with AsyncClient(engine) as client:
        await PythonKit(client, by_feed=by_feed).run_calls(Case(case, under_faults="lose_answer" in json.dumps(case)))


# -------------------------------------------------------------------- the TypeScript client

TYPESCRIPT_RUNS = [f"{section}: {case['name']}" for section in ("http", "client") for case in KIT[section]]


@pytest.fixture(scope="session", params=[[], ["--feed"]], ids=["http", "feed"])
def typescript_results(request: pytest.FixtureRequest, one: ServiceProcess, node: list[str]) -> dict[str, str]:
    """What became of each case: an empty text, or how it differs."""
    command = [*node, str(TYPESCRIPT / "conformance.mjs"), one.url, str(FILE), *request.param]
    done = subprocess.run(command, capture_output=True, text=True)
    results: dict[str, str] = {}
    for line in done.stdout.splitlines():
        result = json.loads(line)
        results[f"{result['section']}: {result['name']}"] = result["error"]
    assert results, done.stderr
    return results


@pytest.mark.parametrize("name", TYPESCRIPT_RUNS)
def test_the_typescript_client_behaves_as_the_case_expects(typescript_results: dict[str, str], name: str) -> None:
    assert typescript_results[name] == ""


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
