"""The cases of `clients/conformance.json`, run over plain HTTP, by the Python client and by the TypeScript client."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
from websockets.sync.client import connect

from service.client import AsyncClient, ClientError, StepResult
from service.client.protocol import decoding
from service.client.protocol.decoding import RawReply
from service.client.protocol.exchange import Exchange, drive_async
from service.client.protocol.requests import ClientRequest
from tests.clients.kit import FILE, KIT, PATH, Case
from tests.faults.proxy import Proxy
from tests.processes import ServiceProcess

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
    run = Case(case)
    for action in case["do"]:
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
    run = Case(case)
    for action in case["do"]:
        method, path, body, key = run.request(action)

        found = await outcome(lambda: drive_async(once(ClientRequest(method, path, body, key=key)), client._send))  # noqa: B023 - awaited here

        run.check(action if "error" not in action else without_status(action), found)


@cases("client")
async def test_the_python_client_behaves_as_the_case_expects(
    client: AsyncClient, proxy: Proxy, case: dict[str, Any]
) -> None:
    run = Case(case)
    models = {name: client.model(KIT["model"]) for name in ("a", "other")}
    for action in case["do"]:
        call = run.fill({name: value for name, value in action.items() if name not in {"expect", "error"}})
        model = models[action.get("handle", "a")]
        if "lose_answer" in action:
            proxy.lose_reply(to=b"POST ")

        found = await outcome(lambda: run_call(model, model.stream(call.get("stream", run.stream())), call))  # noqa: B023 - awaited here

        assert ("error" in action) == (isinstance(found, dict) and "code" in found), found
        run.check(action, found)
    assert proxy.lost == sum("lose_answer" in action for action in case["do"])


async def run_call(model: Any, stream: Any, call: dict[str, Any]) -> Any:
    """Make a call of the client as the case names it."""
    match call["call"]:
        case "step" | "steps" | "peek" as method:
            return await getattr(stream, method)(call["inputs"])
        case "rollout":
            return await stream.rollout(call["horizon"], commit=call.get("commit", False))
        case "step_many":
            return await model.step_many(call["inputs"])
        case "fork":
            await stream.fork(call["to"])
        case "feed":
            async with model.feed() as feed:
                return await in_order(feed.step, call["steps"])
        case method:
            return await getattr(stream, method)()
    return None


async def in_order(step: Callable[..., Awaitable[Any]], steps: list[Any]) -> list[Any]:
    """Start all steps without waiting, and return their results in the order of the calls."""
    import asyncio

    return list(await asyncio.gather(*(step(*one) for one in steps)))


def once(request: ClientRequest) -> Exchange[Any]:
    """Send a request as it is, and return the document of its response."""
    reply = yield request
    error = decoding.error_in(reply, mutates=True)
    if error is not None:
        raise error
    assert isinstance(reply, RawReply)
    return msgspec.msgpack.decode(reply.body) if reply.body else {}


async def outcome(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return a call's result, or the fields of its error, as plain values."""
    try:
        return plain(await call())
    except ClientError as error:
        return plain(error)


def plain(value: Any) -> Any:
    """Return a value of the client as the values of the case are written."""
    match value:
        case ClientError():
            return {name: getattr(value, name) for name in ("code", "applied", "retry", "step", "expected", "state_id")}
        case StepResult():
            names = ("outputs", "step", "state_id", "replayed", "created")
            fields = {name: plain(getattr(value, name)) for name in names}
            return {name: field for name, field in fields.items() if field is not False}
        case np.ndarray() | np.generic():
            return value.tolist()
        case {"d": dtype, "s": shape, "b": data}:
            return np.frombuffer(data, dtype).reshape(shape).tolist()
        case dict():
            return {name: plain(member) for name, member in value.items()}
        case list():
            return [plain(member) for member in value]
        case _ if hasattr(value, "__struct_fields__"):
            return {name: getattr(value, name) for name in value.__struct_fields__}
        case _:
            return value


def without_status(action: dict[str, Any]) -> dict[str, Any]:
    """Return an action without the status that its error has: the client's errors have codes, which are more exact."""
    return action | {"error": {name: value for name, value in action["error"].items() if name != "status"}}


# -------------------------------------------------------------------- the TypeScript client

TYPESCRIPT_RUNS = [f"{section}: {case['name']}" for section in ("http", "client") for case in KIT[section]]


@pytest.fixture(scope="session")
def typescript_results(one: ServiceProcess, node: list[str]) -> dict[str, str]:
    """What became of each case: an empty text, or how it differs."""
    done = subprocess.run(
        [*node, str(TYPESCRIPT / "conformance.mjs"), one.url, str(FILE)], capture_output=True, text=True
    )
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
        "client": [KIT["client"][0] | {"do": [{"call": "step", "inputs": [1], "expect": {"outputs": {"y": [2]}}}]}],
    }
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))

    command = [*node, str(TYPESCRIPT / "conformance.mjs"), one.url, str(tmp_path / "wrong.json")]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 1
    assert "it.outputs.y[0] is 1, expected 2" in json.loads(done.stdout)["error"]
