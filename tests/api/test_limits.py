"""Each limit, exactly met and exceeded by one: of a body, of a batch, and of a tenant."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from stepwell.engine.tenant_limits import TenantRates
from stepwell.errors import ServiceError
from tests.api.running import Service, running_service
from tests.api.test_streams import code_of
from tests.graphs import fold, write_models
from tests.requests.test_api_keys import bearer, key, write_keys_file
from tests.servers import Server, server

RATE = 20
"""Timesteps a second; tests that use it up take far less than a second for that."""


@pytest.fixture(scope="module", params=["lane", "declared"])
def limited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with every limit set, on a store of its own."""
    folder = tmp_path_factory.mktemp("limited")
    keys = write_keys_file(folder / "keys.json", *(key(name, tenant=name) for name in "abcdefghi"))
    with (
        server(folder) as store,
        running_service(
            store.url,
            write_models(folder / "models", fold),
            lane=request.param == "lane",
            api_keys_file=keys,
            tenant_rate=RATE,
            tenant_max_websockets=2,
            tenant_max_streams=3,
            max_chunk_steps=8,
            queue_limit=16,
            max_body_bytes=4000,
        ) as one,
    ):
        yield one


def post(service: Service, tenant: str, path: str, body: Any) -> httpx2.Response:
    return service.http.post(f"/v1/models/fold/{path}", json=body, headers=bearer(tenant))


def deep(levels: int) -> bytes:
    return b'{"inputs": ' + b"[" * (levels - 1) + b"1" + b"]" * (levels - 1) + b"}"


# ------------------------------------------------------------------- limits of one request


def test_a_chunk_a_batch_a_body_and_the_depth_of_json_are_limited(limited: Service) -> None:
    chunks = [post(limited, "a", "streams/chunk/steps", {"inputs": [[1]] * n}).status_code for n in (8, 9)]
    batches = [
        post(limited, "b", "step", {"streams": [f"s{i}" for i in range(n)], "inputs": [[1]] * n}).status_code
        for n in (16, 17)
    ]
    path, headers = "/v1/models/fold/streams/limited/step", bearer("c")
    bodies = [
        limited.http.post(path, content=b'{"inputs": [1]}'.ljust(n), headers=headers).status_code for n in (4000, 4001)
    ]
    depths = [code_of(limited.http.post(path, content=deep(levels), headers=headers)) for levels in (32, 33)]

    assert chunks == batches == bodies == [200, 413]
    assert depths == ["bad_input", "bad_json"]


# ------------------------------------------------------------------- the streams of a tenant


def test_the_number_of_streams_of_a_tenant_is_limited(limited: Service) -> None:
    created = [post(limited, "d", f"streams/{name}/step", {"inputs": [1]}) for name in ("s1", "s2", "s3", "s4")]

    assert [answer.status_code for answer in created] == [200, 200, 200, 429]
    refused = created[-1].json()
    assert (refused["code"], refused["applied"], refused["retry"]) == ("stream_quota", "no", "same")
    assert created[-1].headers["retry-after"]


def test_at_the_limit_existing_streams_continue_and_a_bare_reset_creates_none(limited: Service) -> None:
    for name in ("s1", "s2", "s3"):
        post(limited, "e", f"streams/{name}/step", {"inputs": [1]})

    assert post(limited, "e", "streams/s1/step", {"inputs": [1]}).json()["step"] == 2
    assert post(limited, "e", "streams/s1/reset", {}).status_code == 200
    assert code_of(post(limited, "e", "streams/s9/reset", {})) == "stream_quota"
    rows = post(limited, "e", "step", {"streams": ["s1", "s9"], "inputs": [[1], [1]]}).json()
    assert (rows["step"][0], rows["errors"]["1"]["code"]) == (1, "stream_quota")


def test_deleted_streams_free_the_quota(limited: Service) -> None:
    for name in ("s1", "s2", "s3"):
        post(limited, "f", f"streams/{name}/step", {"inputs": [1]})
    limited.http.delete("/v1/models/fold/streams/s1", headers=bearer("f"))

    limited.run_in_loop(limited.app.state.engine.streams.count)

    assert post(limited, "f", "streams/s4/step", {"inputs": [1]}).status_code == 200
    assert code_of(post(limited, "f", "streams/s5/step", {"inputs": [1]})) == "stream_quota"


def test_streams_are_counted_per_tenant(redis_server: Server, tmp_path: Path) -> None:
    keys = write_keys_file(tmp_path / "keys.json", key("a", tenant="a"), key("b", tenant="b"))
    folder = write_models(tmp_path / "models", fold)
    with running_service(redis_server.url, folder, api_keys_file=keys, tenant_max_streams=2) as first:
        for tenant, name in (("a", "s1"), ("a", "s2"), ("b", "s1")):
            post(first, tenant, f"streams/{name}/step", {"inputs": [1]})
    with running_service(redis_server.url, folder, api_keys_file=keys, tenant_max_streams=2) as second:
        second.run_in_loop(second.app.state.engine.streams.count)

        assert code_of(post(second, "a", "streams/s3/step", {"inputs": [1]})) == "stream_quota"
        assert post(second, "b", "streams/s3/step", {"inputs": [1]}).status_code == 200


# ------------------------------------------------------------------- the rate of a tenant


@pytest.fixture
def acquire() -> Callable[..., float]:
    """Acquire `n` tokens at `now` from a rate of 10 a second; returns the seconds to wait, 0.0 if granted."""
    rates = TenantRates(10)

    def acquire_at(now: float, n: int = 1, tenant: str = "a") -> float:
        try:
            rates.acquire(tenant, n, now)
        except ServiceError as exc:
            return exc.retry_after_s or math.inf
        return 0.0

    return acquire_at


def test_a_burst_of_one_second_is_granted_and_then_the_rate(acquire: Callable[..., float]) -> None:
    """A rejected request costs nothing, and one tenant does not wait for another."""
    assert [acquire(0) for _ in range(10)] == [0] * 10
    assert [acquire(0) for _ in range(5)] == [pytest.approx(0.1)] * 5
    assert acquire(0, tenant="b") == 0
    assert acquire(0.1) == 0
    assert acquire(0.1) > 0


def test_a_request_larger_than_a_burst_is_granted_and_delays_the_next(acquire: Callable[..., float]) -> None:
    assert acquire(0, 40) == 0
    assert acquire(0) == pytest.approx(3.1)
    assert acquire(3.1) == 0


def test_beyond_the_rate_is_429_with_retry_after(limited: Service) -> None:
    answers = [post(limited, "g", "streams/s/step", {"inputs": [1]}) for _ in range(4 * RATE)]

    good = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(good) >= RATE
    assert len(good) + len(refused) == len(answers)
    assert {(code_of(one), one.json()["applied"], one.headers["retry-after"]) for one in refused} == {
        ("rate_limited", "no", "1")
    }
    assert good[-1].json()["step"] == len(good)


def test_feed_messages_count_towards_the_rate(limited: Service) -> None:
    with limited.feed("fold", "x", additional_headers=bearer("i")) as feed:
        answers: list[dict[str, Any]] = []
        while len(answers) < 20 * RATE and "error" not in (answers or [{}])[-1]:
            feed.send('{"inputs": [1]}')
            answers.append(json.loads(feed.recv()))

    refused = [answer["error"] for answer in answers if "error" in answer]
    assert {(one["code"], one["applied"], one["retry"]) for one in refused} == {("rate_limited", "no", "same")}
    assert len(answers) > RATE


def test_requests_that_move_nothing_count_except_metrics(limited: Service) -> None:
    looks = [limited.http.get("/v1/models", headers=bearer("h")).status_code for _ in range(3 * RATE)]

    assert 429 in looks
    assert limited.http.get("/metrics", headers=bearer("h")).status_code == 200


# ------------------------------------------------------------------- the sockets of a tenant


@pytest.mark.parametrize("path", ["/v1/models/fold/feed", "/v1/watch"])
def test_the_number_of_sockets_of_a_tenant_is_limited(limited: Service, path: str) -> None:
    with (
        limited.feed("fold", "x", additional_headers=bearer("a")),
        limited.feed("fold", additional_headers=bearer("a")),
    ):
        with pytest.raises(InvalidStatus) as caught, limited.websocket(path, additional_headers=bearer("a")):
            pass
        with limited.feed("fold", "x", additional_headers=bearer("b")) as other:
            other.send('{"inputs": [1]}')
            other.recv()

    refused = caught.value.response
    assert refused.status_code == 429
    assert json.loads(refused.body)["code"] == "rate_limited"
    assert refused.headers["retry-after"] == "1"


def test_a_closed_socket_frees_the_quota(limited: Service) -> None:
    for _ in range(4):
        with limited.feed("fold", "x", additional_headers=bearer("c")):
            pass
        limited.wait_for_websockets(0)

    assert "c" not in limited.app.state.context.websockets_of


def test_a_browser_over_the_limit_gets_a_problem_after_its_key(limited: Service) -> None:
    limited.wait_for_websockets(0)
    with limited.feed("fold", "x") as first, limited.feed("fold", "x") as second, limited.feed("fold", "x") as third:
        for one in (first, second):
            one.send('{"auth": "d"}')
            one.send('{"inputs": 1}')
            one.recv()
        third.send('{"auth": "d"}')

        assert json.loads(third.recv())["error"]["code"] == "rate_limited"
        with pytest.raises(ConnectionClosed):
            third.recv()
