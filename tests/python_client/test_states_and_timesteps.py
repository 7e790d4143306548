"""States in the call, packed states, and rollouts timestep by timestep, by the Python client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from stepwell_client import Client, ClientError, RolloutTimestep
from tests.api.running import Service, running_service
from tests.faults.proxy import Proxy
from tests.graphs import fold, letters, lstm, nan_at, slow, wave, write_models
from tests.python_client.transports import TRANSPORTS, engine_in_process
from tests.servers import Server

X = np.array([0.1, -0.2, 0.3, 0.4], "f4")


@pytest.fixture(scope="module")
def service(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = write_models(tmp_path_factory.mktemp("models"), fold, letters, lstm, slow, wave, nan_at=lambda: nan_at(4))
    with running_service(shared_redis.url, folder) as running:
        yield running


@pytest.fixture(scope="module", params=TRANSPORTS)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "http":
        yield f"http://127.0.0.1:{request.getfixturevalue('service').port}"
    else:
        with engine_in_process(write_models(tmp_path_factory.mktemp("in-process"), letters, lstm, wave)) as engine:
            yield engine.url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as made:
        yield made


def columns(timesteps: list[RolloutTimestep], member: str) -> dict[str, list[object]]:
    names = getattr(timesteps[0], member)
    return {name: [getattr(one, member)[name].tolist() for one in timesteps] for name in names}


def test_the_timesteps_of_a_rollout_are_those_of_the_whole(client: Client, stream: str) -> None:
    handle = client.model("wave").stream(stream)
    handle.step([0.3])
    whole = handle.rollout(5)
    timesteps = list(handle.rollout_timesteps(5))

    assert columns(timesteps, "outputs") == {name: array.tolist() for name, array in whole.outputs.items()}
    assert columns(timesteps, "next") == {name: array.tolist() for name, array in whole.next.items()}
    assert [one.rollout for one in timesteps[:-1]] == [None] * 4
    assert timesteps[-1].rollout is not None
    assert (timesteps[-1].rollout.step, timesteps[-1].rollout.state_id) == (whole.step, whole.state_id)
    assert timesteps[0].outputs["y"].dtype == np.float32


def test_with_samples_a_timestep_has_their_axis_first(client: Client, stream: str) -> None:
    handle = client.model("letters").stream(stream)
    for samples, commit in ((3, False), (1, True)):
        timesteps = list(handle.rollout_timesteps(4, 1, samples=samples, seed=7, commit=commit))

        assert [one.next["x"].shape for one in timesteps] == [(samples,)] * 4
        assert timesteps[-1].rollout is not None
        assert timesteps[-1].rollout.seed == 7


def test_a_rollout_that_fails_after_some_timesteps_raises_its_error(service: Service, stream: str) -> None:
    with Client(f"http://127.0.0.1:{service.port}") as client:
        timesteps = client.model("nan_at").stream(stream).rollout_timesteps(9, [1], feedback={"x": "y"})
        seen = [next(timesteps).outputs["y"].tolist() for _ in range(3)]
        with pytest.raises(ClientError) as caught:
            next(timesteps)

    assert seen == [[1], [2], [4]]
    assert (caught.value.code, caught.value.applied) == ("non_finite_state", "no")


def test_a_rollout_that_is_refused_raises_its_error(client: Client, stream: str) -> None:
    with pytest.raises(ClientError) as caught:
        list(client.model("lstm").stream(stream).rollout_timesteps(3, X))

    assert (caught.value.code, caught.value.applied) == ("bad_input", "no")


def test_a_rollout_whose_answer_was_lost_is_sent_again(service: Service, stream: str) -> None:
    with Proxy(("127.0.0.1", service.port)) as proxy, Client(f"http://127.0.0.1:{proxy.port}") as client:
        client.model("wave").describe()
        proxy.lose_reply(to=b"/rollout")
        timesteps = list(client.model("wave").stream(stream).rollout_timesteps(3, [0.5]))

        assert (len(timesteps), proxy.lost) == (3, 1)


def test_leaving_the_loop_ends_the_run(service: Service, stream: str) -> None:
    """Each timestep of this model takes twice as long as the one before; 40 would take hours."""
    admission = service.app.state.context.engine.admission
    with Client(f"http://127.0.0.1:{service.port}") as client:
        timesteps = client.model("slow").stream(stream).rollout_timesteps(40, [1], feedback={"x": "y"})
        first = next(timesteps)
        running = admission.rows
        timesteps.close()  # type: ignore[attr-defined]  # it is a generator

        async def ended() -> None:
            async with asyncio.timeout(30):
                while admission.rows:  # noqa: ASYNC110 - no event is published
                    await asyncio.sleep(0.005)

        service.run_in_loop(ended)
    assert (first.outputs["y"].tolist(), running) == ([1], 1)


def test_the_stream_can_be_stepped_between_two_timesteps(service: Service, stream: str) -> None:
    with Client(f"http://127.0.0.1:{service.port}") as client:
        handle = client.model("wave").stream(stream)
        steps = [handle.step([0.1]).step for _ in handle.rollout_timesteps(3, [0.5])]

    assert steps == [1, 2, 3]


def test_runs_are_the_steps_of_a_stream(client: Client, stream: str) -> None:
    model, state = client.model("lstm"), None
    for _ in range(3):
        run = model.run(X, state)
        stepped = model.stream(stream).step(X)
        state = run.state
        assert {name: array.tolist() for name, array in run.outputs.items()} == {
            name: array.tolist() for name, array in stepped.outputs.items()
        }

    assert model.stream(stream).packed_state().state == state


def test_a_text_in_place_of_states_is_refused(client: Client) -> None:
    with pytest.raises(ClientError, match="expected a list"):
        client.model("lstm").run_many(X[None], "AAAA")
