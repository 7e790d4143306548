"""`ModelStreamInfer`: responses in the order of the requests, errors as messages, and how a call ends."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.addons.grpc_api.client import GrpcClient, grpc, infer_request, integer, parameters_of, refused, y_of
from tests.addons.grpc_api.conftest import GrpcService
from tests.graphs import fold, fold_reference, write_models
from tests.requests.test_api_keys import key, write_keys_file
from tests.servers import Server


def request(x: int, stream: str, **more: Any) -> Any:
    return infer_request("fold", {"x": integer(x)}, sequence_id=stream, **more)


class OpenCall:
    """A call of `ModelStreamInfer` whose requests are sent one by one."""

    def __init__(self, client: GrpcClient) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.responses = client.stream(iter(self._requests.get, None))

    def send(self, one: Any) -> None:
        self._requests.put(one)

    def step(self, one: Any) -> Any:
        """Send a request, and return its response."""
        self.send(one)
        return next(self.responses)

    def end(self) -> None:
        """Send nothing more."""
        self._requests.put(None)


def test_responses_come_in_the_order_of_the_requests(client: GrpcClient, stream: str) -> None:
    """Also if requests of several sequences, and rejected ones, are on their way together."""
    names = [f"{stream}-{n}" for n in range(5)]
    sent = [
        request(n, names[n % 5], name=f"r{n}", sequence_start=n <= 5) if n % 7 else request(n, "", name=f"r{n}")
        for n in range(300)
    ]
    got = list(client.stream(sent))

    assert [one.infer_response.id for one in got] == [f"r{n}" for n in range(300)]
    assert all(bool(one.error_message) == (n % 7 == 0) for n, one in enumerate(got))


def test_each_sequence_is_the_fold_of_its_requests(client: GrpcClient, stream: str) -> None:
    sent = [request(n, f"{stream}-{n % 3}", sequence_start=n < 3) for n in range(90)]
    found = [y_of(one.infer_response) for one in client.stream(sent)]

    for at in range(3):
        assert found[at::3] == fold_reference(range(at, 90, 3))


def test_an_error_is_a_message_with_the_id_of_its_request(client: GrpcClient, stream: str) -> None:
    """And the call goes on."""
    call = OpenCall(client)
    got = [
        call.step(one)
        for one in (
            request(1, stream, name="first"),
            request(1, stream, sequence_start=True),
            request(2, stream, name="gap", step=9),
            request(2, stream),
        )
    ]
    call.end()

    assert [one.error_message[:40] for one in got[::2]] == [
        "inference request for sequence " + stream,
        got[2].error_message[:40],
    ]
    assert "(code: seq_gap, applied: no)" in got[2].error_message
    assert [one.infer_response.id for one in got] == ["first", "", "gap", ""]
    assert [y_of(one.infer_response) for one in got[1::2]] == fold_reference([1, 2])
    assert list(call.responses) == []


def test_the_last_response_to_a_request_is_marked_on_request(client: GrpcClient, stream: str) -> None:
    marked_too = {"triton_enable_empty_final_response": True}
    marked, other = client.stream([request(1, stream, sequence_start=True, **marked_too), request(2, stream)])

    assert parameters_of(marked.infer_response)["triton_final_response"] is True
    assert "triton_final_response" not in parameters_of(other.infer_response)


def test_the_same_step_twice_over_one_call_is_applied_once(client: GrpcClient, stream: str) -> None:
    sent = [request(1, stream, sequence_start=True), *[request(2, stream, step=2)] * 2, request(3, stream, step=3)]
    got = [one.infer_response for one in client.stream(sent)]

    assert [y_of(one) for one in got] == [fold_reference([1, 2, 3])[at] for at in (0, 1, 1, 2)]
    assert [parameters_of(one)["replayed"] for one in got] == [False, False, True, False]


def test_a_client_that_does_not_read_bounds_what_is_accepted(
    service: GrpcService, client: GrpcClient, stream: str
) -> None:
    """All is answered once it reads."""
    got = client.stream([request(n, f"{stream}-{n % 50}", sequence_start=n < 50) for n in range(2000)])
    other = [client.predict(n, f"{stream}-b", sequence_start=n == 0) for n in range(3)]
    answered = list(got)

    assert [one.error_message for one in answered] == [""] * 2000
    for at in range(50):
        found = [y_of(one.infer_response) for one in answered[at::50]]
        assert found == fold_reference(range(at, 2000, 50))
    assert other == fold_reference(range(3))


def test_requests_on_their_way_share_batches(service: GrpcService, client: GrpcClient, stream: str) -> None:
    def runs() -> float:
        text = httpx2.get(f"{service.url}/metrics", timeout=30).text
        found = re.search(r'stepwell_batch_rows_count{model="fold"} (\S+)', text)
        return float(found[1]) if found else 0.0

    before = runs()
    got = list(client.stream([request(n, f"{stream}-{n % 32}", sequence_start=n < 32) for n in range(1600)]))

    assert [one.error_message for one in got] == [""] * 1600
    assert runs() - before < 800


def test_bytes_that_are_no_message_are_an_error_of_one_request(client: GrpcClient, stream: str) -> None:
    send = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    good = request(1, stream, sequence_start=True).SerializeToString()

    assert len(list(send(iter([b"\xff\xff", good]), timeout=60))) == 2


# ------------------------------------------------------------------- how a call ends


def service_with_keys(folder: Path, redis: str) -> GrpcService:
    """Return a service with the keys `full`, `reads` and `short`, and two places for calls."""
    keys = write_keys_file(folder / "keys.json", key("full"), key("reads", scopes=["read"]), key("short"))
    flags = ("--redis", redis, "--api-keys-file", str(keys), "--max-websockets", "2")
    return GrpcService(write_models(folder / "models", fold), folder, *flags)


@pytest.fixture(scope="module")
def keyed(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcService]:
    with service_with_keys(tmp_path_factory.mktemp("keyed"), shared_redis.url).running() as one:
        yield one


@pytest.fixture
def own(redis_server: Server, tmp_path: Path) -> Iterator[GrpcService]:
    """A service that the test may stop."""
    with service_with_keys(tmp_path, redis_server.url).running() as one:
        yield one


def ended(call: OpenCall) -> Any:
    with pytest.raises(grpc.RpcError) as error:
        list(call.responses)
    return refused(error.value)


def test_a_drain_answers_what_was_accepted_and_ends_the_call(own: GrpcService) -> None:
    client = GrpcClient(own.grpc_port, "full")
    call = OpenCall(client)
    first = call.step(request(1, "a", sequence_start=True))
    own.process.terminate()
    end = ended(call)
    client.close()

    assert y_of(first.infer_response) == fold_reference([1])[0]
    assert (end.code, end.message.startswith("Server is stopping")) == ("UNAVAILABLE", True)
    assert end.metadata["grpc-retry-pushback-ms"] == "1000"
    assert own.process.wait(30) == 0


def test_a_call_ends_when_its_key_is_removed(keyed: GrpcService) -> None:
    client = GrpcClient(keyed.grpc_port, "short")
    call = OpenCall(client)
    call.step(request(1, "a", sequence_start=True))
    write_keys_file(keyed.folder / "keys.json", key("full"), key("reads", scopes=["read"]))
    while True:  # the key of an open call is checked once a second
        call.send(request(2, "a"))
        try:
            next(call.responses)
        except grpc.RpcError as error:
            end = refused(error)
            break
    client.close()

    assert end.code == "UNAUTHENTICATED"


@pytest.mark.parametrize(("name", "code"), [(None, "UNAUTHENTICATED"), ("reads", "PERMISSION_DENIED")])
def test_a_call_without_the_scope_is_rejected(keyed: GrpcService, name: str | None, code: str) -> None:
    client = GrpcClient(keyed.grpc_port, name)
    call = OpenCall(client)
    end = ended(call)
    client.close()

    assert end.code == code


def test_the_limit_on_websockets_includes_the_calls(keyed: GrpcService) -> None:
    client = GrpcClient(keyed.grpc_port, "full")
    calls = [OpenCall(client) for _ in range(2)]
    for n, call in enumerate(calls):
        call.step(request(1, f"s{n}", sequence_start=True))
    end = ended(OpenCall(client))
    for call in calls:
        call.end()
        assert list(call.responses) == []
    client.close()

    assert (end.code, "at most 2 are allowed" in end.message) == ("UNAVAILABLE", True)


def test_a_call_that_its_client_cancels_leaves_nothing_behind(own: GrpcService) -> None:
    """Its places are free again, and the service still ends at once."""
    client = GrpcClient(own.grpc_port, "full")
    for n in range(6):
        call = OpenCall(client)
        while True:
            try:
                call.step(request(n, f"s{n}", sequence_start=True))
                break
            except grpc.RpcError:  # the place of the call before is not free yet
                call.end()
                call = OpenCall(client)
        call.responses.cancel()  # type: ignore[attr-defined]  # a grpc.Call, too
        call.end()
    client.close()

    assert own.stop() == 0
    assert "Traceback" not in own.log.read_text()
    assert "A request failed" not in own.log.read_text()
