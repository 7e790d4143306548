"""The first request of a new stream by the Python client: a copy of it that arrives late changes nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import httpx2
import pytest

from stepwell_client import AsyncClient, ClientError
from stepwell_client.aio import AsyncModel
from stepwell_client.results import StepResult
from tests.graphs import fold, fold_reference, write_models
from tests.processes import ServiceProcess, service_process

FIRST: dict[str, Callable[[AsyncModel, str], Awaitable[object]]] = {
    "step": lambda model, stream: model.stream(stream).step([7]),
    "steps": lambda model, stream: model.stream(stream).steps([[7], [-3]]),
    "rollout": lambda model, stream: model.stream(stream).rollout(2, [7], feedback={"x": "y"}, commit=True),
    "step_many": lambda model, stream: model.step_many({stream: [7], f"{stream}-b": [7]}),
}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    models = write_models(tmp_path_factory.mktemp("models"), fold)
    with service_process(models, tmp_path_factory.mktemp("sw")) as running_one:
        yield running_one


class Recorded:
    """The requests that a client has sent over HTTP and that can change a stream."""

    def __init__(self, client: AsyncClient) -> None:
        self.requests: list[httpx2.Request] = []
        client._http.client.event_hooks["request"].append(self._keep)

    async def _keep(self, request: httpx2.Request) -> None:
        if request.method != "GET":
            self.requests.append(request)


async def test_a_late_copy_of_a_first_request_is_not_applied_after_a_reset(one: ServiceProcess) -> None:
    async with AsyncClient(one.url) as client, httpx2.AsyncClient() as another:
        recorded, model = Recorded(client), client.model("fold")
        for first, call in FIRST.items():
            recorded.requests.clear()
            await call(model, first)
            reset = await model.stream(first).reset()
            copy = recorded.requests[0]

            late = await another.request(copy.method, copy.url, headers=copy.headers, content=copy.content)

            status = await model.stream(first).status()
            assert (status.step, status.state_id) == (0, reset.state_id), first
            assert b"stream_exists" in late.content
            assert ys(await model.stream(first).step([11])) == fold_reference([11])


async def test_the_first_step_of_a_feed_is_not_applied_to_a_stream_that_exists(one: ServiceProcess) -> None:
    async with AsyncClient(one.url) as client:
        model, other = client.model("fold"), client.model("fold")
        assert await model.stream("feed").resume() == 0
        await other.stream("feed").step([-3])
        await other.stream("feed").reset()

        async with model.feed() as feed:
            with pytest.raises(ClientError) as caught:
                await feed.step("feed", [7])

    assert caught.value.code == "stream_exists"


async def test_a_rollout_that_must_not_create_its_stream_does_not(one: ServiceProcess) -> None:
    async with AsyncClient(one.url) as client:
        handle = client.model("fold").stream("missing")

        with pytest.raises(ClientError) as caught:
            await handle.rollout(2, [7], feedback={"x": "y"}, commit=True, create="never")

        assert caught.value.code == "stream_not_found"
        assert await handle.resume() == 0


async def test_streams_that_exist_and_streams_that_do_not_are_stepped_by_one_call(one: ServiceProcess) -> None:
    async with AsyncClient(one.url) as client:
        recorded, model = Recorded(client), client.model("fold")
        await model.stream("old").step([7])

        answers = await model.step_many({name: [-3] for name in ("new-a", "old", "new-b")})

        assert {name: ys(answer) for name, answer in answers.items()} == {
            "new-a": fold_reference([-3]),
            "new-b": fold_reference([-3]),
            "old": fold_reference([7, -3])[-1:],
        }
        assert len(recorded.requests) == 3


def ys(answer: object) -> list[int]:
    assert isinstance(answer, StepResult)
    return [int(answer.output[0])]
