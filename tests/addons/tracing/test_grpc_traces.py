"""A sampled request over gRPC is the same tree of spans as one over HTTP, for calls and for messages of a stream."""

from __future__ import annotations

import os
import secrets
from typing import Any, NamedTuple

import pytest

from tests.addons.grpc_api.client import GrpcClient, infer_request, integer, y_of
from tests.addons.grpc_api.conftest import GrpcService
from tests.graphs import fold, write_models
from tests.servers import Server

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="traces need: pip install 'stepwell[otel]'")

from tests.addons.tracing.receiver import Receiver, receiver
from tests.addons.tracing.test_traces import PHASES, Parent, children_of, root_of

METHOD = "/inference.GRPCInferenceService"


def request(x: int, stream: str, **more: Any) -> Any:
    return infer_request("fold", {"x": integer(x)}, sequence_id=stream, **more)


class Sent(NamedTuple):
    """Calls, each with a caller's span of its own; the service has stopped, so that all spans have arrived."""

    spans: Receiver
    call: Parent
    messages: Parent
    gap: Parent
    unreadable: Parent


@pytest.fixture(scope="module")
def sent(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Sent:
    folder, prefix = tmp_path_factory.mktemp("grpc"), secrets.token_hex(4)
    with receiver() as spans, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            patch.delenv(name)
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
        found = Sent(spans, *(Parent() for _ in range(4)))
        service = GrpcService(write_models(folder / "models", fold), folder, "--redis", shared_redis.url).start()
        parents = (Parent(sampled=False), found.call, found.messages, found.gap, found.unreadable)
        clients = [GrpcClient(service.grpc_port, **parent.headers) for parent in parents]
        unsampled, sampled, messages, gap, unreadable = clients
        y_of(unsampled.infer(request(1, f"{prefix}.s", sequence_start=True)))
        y_of(sampled.infer(request(2, f"{prefix}.s")))
        got = list(messages.stream([request(n, f"{prefix}.m", sequence_start=n == 0) for n in range(3)]))
        assert [one.error_message for one in got] == [""] * 3
        assert gap.infer(request(1, f"{prefix}.g", sequence_start=True, step=7)).code == "INVALID_ARGUMENT"
        assert unreadable.infer(request(1, "")).code == "INVALID_ARGUMENT"
        for client in clients:
            client.close()
        assert service.stop() == 0
    return found


def test_a_sampled_call_is_one_tree_linked_to_its_batch(sent: Sent) -> None:
    tree = sent.spans.trace(sent.call.trace)
    root = root_of(tree)
    assert (root.name, root.parent) == (f"{METHOD}/ModelInfer", sent.call.span)
    assert children_of(tree, root) == PHASES
    found = {name: root.attributes[f"stepwell.{name}"] for name in ("model", "step", "version")}
    assert found == {"model": "fold", "step": 2, "version": 1}
    assert root.attributes["stepwell.stream"].endswith(".s")
    assert root.attributes["http.response.status_code"] == 200
    [batch] = [span for span in sent.spans.named("batch") if (root.trace, root.id) in span.links]
    assert root.links == [(batch.trace, batch.id)]
    assert batch.links == [(root.trace, root.id)]


def test_each_message_of_a_sampled_stream_is_a_tree(sent: Sent) -> None:
    tree = sent.spans.trace(sent.messages.trace)
    roots = [span for span in tree if span.parent == sent.messages.span]
    assert [span.name for span in roots] == [f"{METHOD}/ModelStreamInfer"] * 3
    assert sorted(span.attributes["stepwell.step"] for span in roots) == [1, 2, 3]
    assert [children_of(tree, root) for root in roots] == [PHASES] * 3
    assert [len(root.links) for root in roots] == [1, 1, 1]


def test_an_error_of_a_sampled_call_has_its_code(sent: Sent) -> None:
    roots = [root_of(sent.spans.trace(parent.trace)) for parent in (sent.gap, sent.unreadable)]
    assert [root.attributes["error.type"] for root in roots] == ["bad_request", "bad_request"]
    assert [root.attributes["http.response.status_code"] for root in roots] == [400, 400]


def test_an_unsampled_call_leaves_nothing(sent: Sent) -> None:
    sampled = {parent.trace for parent in (sent.call, sent.messages, sent.gap, sent.unreadable)}
    assert {span.trace for span in sent.spans.spans if span.name != "batch"} == sampled
    assert {trace for span in sent.spans.named("batch") for trace, _ in span.links} <= sampled
