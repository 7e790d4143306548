"""A sampled request over gRPC is the same tree of spans as one over HTTP, for calls and for messages of a stream."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.addons.grpc_api.client import GrpcClient, infer_request, integer, y_of
from tests.addons.grpc_api.conftest import GrpcService
from tests.graphs import fold, write_models
from tests.servers import Server

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="traces need: pip install 'stepwell[otel]'")

from tests.addons.tracing.receiver import Receiver, receiver
from tests.addons.tracing.test_traces import PHASES, Parent, children_of, root_of

METHOD = "/inference.GRPCInferenceService"


@pytest.fixture
def spans() -> Iterator[Receiver]:
    with receiver() as one:
        yield one


@pytest.fixture
def service(spans: Receiver, shared_redis: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GrpcService:
    """A running service that sends its spans to the receiver; after `stop` all have arrived."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
    return GrpcService(write_models(tmp_path / "models", fold), tmp_path, "--redis", shared_redis.url).start()


def request(x: int, stream: str, **more: Any) -> Any:
    return infer_request("fold", {"x": integer(x)}, sequence_id=stream, **more)


def test_a_sampled_call_is_one_tree_linked_to_its_batch(service: GrpcService, spans: Receiver, stream: str) -> None:
    parent = Parent()
    plain, traced = GrpcClient(service.grpc_port), GrpcClient(service.grpc_port, **parent.headers)
    plain.infer(request(1, stream, sequence_start=True))
    y_of(traced.infer(request(2, stream)))
    for client in (plain, traced):
        client.close()
    assert service.stop() == 0

    tree = spans.trace(parent.trace)
    root = root_of(tree)
    assert (root.name, root.parent) == (f"{METHOD}/ModelInfer", parent.span)
    assert children_of(tree, root) == PHASES
    found = {name: root.attributes[f"stepwell.{name}"] for name in ("model", "stream", "step", "version")}
    assert found == {"model": "fold", "stream": stream, "step": 2, "version": 1}
    assert root.attributes["http.response.status_code"] == 200
    [batch] = spans.named("batch")
    assert root.links == [(batch.trace, batch.id)]
    assert batch.links == [(root.trace, root.id)]


def test_each_message_of_a_sampled_stream_is_a_tree(service: GrpcService, spans: Receiver, stream: str) -> None:
    parent = Parent()
    client = GrpcClient(service.grpc_port, **parent.headers)
    got = list(client.stream([request(n, stream, sequence_start=n == 0) for n in range(3)]))
    client.close()
    assert service.stop() == 0

    assert [one.error_message for one in got] == [""] * 3
    tree = spans.trace(parent.trace)
    roots = [span for span in tree if span.parent == parent.span]
    assert [span.name for span in roots] == [f"{METHOD}/ModelStreamInfer"] * 3
    assert sorted(span.attributes["stepwell.step"] for span in roots) == [1, 2, 3]
    assert [children_of(tree, root) for root in roots] == [PHASES] * 3
    assert [len(root.links) for root in roots] == [1, 1, 1]


def test_an_error_of_a_sampled_call_has_its_code(service: GrpcService, spans: Receiver, stream: str) -> None:
    gap, unreadable = Parent(), Parent()
    for parent, one in ((gap, request(1, stream, sequence_start=True, step=7)), (unreadable, request(1, ""))):
        client = GrpcClient(service.grpc_port, **parent.headers)
        assert client.infer(one).code == "INVALID_ARGUMENT"
        client.close()
    assert service.stop() == 0

    roots = [root_of(spans.trace(parent.trace)) for parent in (gap, unreadable)]
    assert [root.attributes["error.type"] for root in roots] == ["bad_request", "bad_request"]
    assert [root.attributes["http.response.status_code"] for root in roots] == [400, 400]


def test_an_unsampled_call_leaves_nothing(service: GrpcService, spans: Receiver, stream: str) -> None:
    client = GrpcClient(service.grpc_port, **Parent(sampled=False).headers)
    y_of(client.infer(request(1, stream, sequence_start=True)))
    client.close()
    assert service.stop() == 0

    assert spans.spans == []
