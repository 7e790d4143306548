"""Calls of the Python client that are cancelled at one of their requests, and repeated: each has its effect once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx2
import pytest

from stepwell_client import AsyncClient, ClientError
from stepwell_client.aio import AsyncModel
from tests.graphs import fold, write_models
from tests.processes import ServiceProcess, service_process

Call = Callable[[AsyncModel, str], Awaitable[object]]

NEW: Sequence[Call] = ()
OLD: Sequence[Call] = (
    lambda model, stream: model.stream(stream).step([1]),
    lambda model, stream: model.stream(stream).take_snapshot("s"),
    lambda model, stream: model.stream(stream).step([2]),
)
"""What is done before the call."""


async def _put_own_state(model: AsyncModel, stream: str) -> object:
    handle = model.stream(stream)
    return await handle.put_state(await handle.state())


CALLS: dict[str, tuple[Sequence[Call], Call]] = {
    "a first step": (NEW, lambda model, stream: model.stream(stream).step([7])),
    "a step": (OLD, lambda model, stream: model.stream(stream).step([7])),
    "a first chunk": (NEW, lambda model, stream: model.stream(stream).steps([[7], [-3]])),
    "a chunk": (OLD, lambda model, stream: model.stream(stream).steps([[7], [-3]])),
    "a rollout": (OLD, lambda model, stream: model.stream(stream).rollout(2, [7], feedback={"x": "y"}, commit=True)),
    "many streams": (OLD, lambda model, stream: model.step_many({f"{stream}{end}": [7] for end in ("", "-b", "-c")})),
    "a source": (OLD, lambda model, stream: model.stream(stream).steps([[7], [-3]], source=("log", [4, 5]))),
    "many sources": (
        OLD,
        lambda model, stream: model.step_many({stream: [7]}, sources={stream: ("log", 4)}),
    ),
    "a reset": (OLD, lambda model, stream: model.stream(stream).reset()),
    "a reset to a snapshot": (OLD, lambda model, stream: model.stream(stream).reset("s")),
    "a fork": (OLD, lambda model, stream: model.stream(stream).fork(f"{stream}-b")),
    "a state": (OLD, _put_own_state),
    "a deletion": (OLD, lambda model, stream: model.stream(stream).delete()),
    "a snapshot": (OLD, lambda model, stream: model.stream(stream).take_snapshot("s")),
    "a deletion of a snapshot": (OLD, lambda model, stream: model.stream(stream).forget_snapshot("s")),
    "resume": (OLD, lambda model, stream: model.stream(stream).resume()),
}
THEN: Sequence[Call] = (
    lambda model, stream: model.stream(stream).step([11]),
    lambda model, stream: model.stream(stream).take_snapshot("s"),
    lambda model, stream: model.stream(stream).step([13]),
)
"""What is done after the call, before late copies of its requests arrive."""


class Cuts(httpx2.AsyncBaseTransport):
    """A transport that cancels the calls whose requests it should cut.

    Attributes:
        plan: What happens to a request by its number: it is `applied` before the call is cancelled, or it arrives
            `late`: when `deliver` is called.
        sent: Number of requests so far.
    """

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self.plan: Mapping[int, str] = {}
        self.sent = 0
        self._transport = transport
        self._late: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        cut = self.plan.get(self.sent)
        self.sent += 1
        if cut is None:
            return await self._transport.handle_async_request(request)
        self._late.append(request)
        if cut == "applied":
            await self.deliver()
        raise asyncio.CancelledError

    async def deliver(self) -> None:
        """Send the requests that are late."""
        while self._late:
            late = self._late.pop()
            copy = httpx2.Request(late.method, late.url, headers=late.headers, content=await late.aread())
            response = await self._transport.handle_async_request(copy)
            await response.aread()
            await response.aclose()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    models = write_models(tmp_path_factory.mktemp("models"), fold)
    with service_process(models, tmp_path_factory.mktemp("sw")) as running_one:
        yield running_one


@pytest.fixture
async def cuts() -> AsyncIterator[Cuts]:
    async with httpx2.AsyncHTTPTransport() as transport:
        yield Cuts(transport)


@pytest.fixture
async def client(one: ServiceProcess, cuts: Cuts) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(one.url) as made:
        headers = made._http.client.headers
        made._http.client = httpx2.AsyncClient(base_url=one.url, headers=headers, transport=cuts)
        yield made


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_was_cancelled_and_is_repeated_has_its_effect_once(
    client: AsyncClient, cuts: Cuts, name: str
) -> None:
    prefix = name.replace(" ", "-")
    n_requests, expected = await _run(client, cuts, name, prefix, {})

    for number, plan in enumerate(_plans(n_requests)):
        n_sent, found = await _run(client, cuts, name, f"{prefix}{number}", plan)

        assert n_sent > max(plan)
        assert found == expected, plan


def _plans(n_requests: int) -> Iterator[dict[int, str]]:
    """Yield all ways to cut one request, and to cut the repeated one, too, of which a copy arrives late."""
    for at, cut in itertools.product(range(n_requests), ("applied", "late")):
        yield {at: cut}
        yield {at: cut, at + 1: "late"}


async def _run(
    client: AsyncClient, cuts: Cuts, name: str, stream: str, plan: Mapping[int, str]
) -> tuple[int, list[Any]]:
    """Make a call until it is not cancelled; return the number of its requests, and the streams at the end."""
    model = client.model("fold")
    before, call = CALLS[name]
    for other in before:
        await other(model, stream)
    cuts.sent, cuts.plan = 0, plan
    while True:
        try:
            await call(model, stream)
            break
        except asyncio.CancelledError:
            continue
    n_requests, cuts.plan = cuts.sent, {}
    for other in THEN:
        await other(model, stream)
    await cuts.deliver()
    await model.stream(stream).step([17])
    return n_requests, [await _content(client, f"{stream}{end}") for end in ("", "-b", "-c")]


async def _content(client: AsyncClient, stream: str) -> Any:
    """Return a stream's step, its next prediction and the steps of its snapshots; or that it is missing."""
    handle = client.model("fold").stream(stream)
    try:
        peek = await handle.peek([19])
        snapshots = await handle.snapshots()
    except ClientError as error:
        return error.code
    return peek.step, int(peek.output[0]), [(one.name, one.step) for one in snapshots]
