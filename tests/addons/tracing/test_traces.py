"""A sampled request is one tree of spans at a real OTLP receiver, linked to its batch; any other leaves nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from stepwell.requests.handlers import StepHandler
from tests.api.running import Service, running_service
from tests.graphs import fold, stateless, write_models
from tests.processes import LAUNCH, free_port
from tests.servers import Server

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="traces need: pip install 'stepwell[otel]'")

from tests.addons.tracing.receiver import ReceivedSpan, Receiver, receiver

STEP = "POST /v1/models/{model}/streams/{stream}/step"
PHASES = ["receive", "queue", "load", "run", "commit"]
SERVER_KIND = 2
Traced = Callable[..., AbstractContextManager[Service]]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def spans() -> Iterator[Receiver]:
    with receiver() as one:
        yield one


@pytest.fixture
def traced(spans: Receiver, shared_redis: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Traced:
    """Starts a service that sends its spans to the receiver; at the end of the block all have arrived."""
    models = write_models(tmp_path / "models", fold, stateless)

    @contextlib.contextmanager
    def start(*, lane: bool = True, **variables: str) -> Iterator[Service]:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with running_service(shared_redis.url, models, lane=lane) as service:
            yield service

    return start


class Parent:
    """A caller's span."""

    def __init__(self, *, sampled: bool = True) -> None:
        self.trace, self.span = secrets.token_hex(16), secrets.token_hex(8)
        self.headers = {"traceparent": f"00-{self.trace}-{self.span}-0{int(sampled)}"}


def root_of(tree: list[ReceivedSpan]) -> ReceivedSpan:
    [root] = [span for span in tree if span.kind == SERVER_KIND]
    return root


def children_of(tree: list[ReceivedSpan], parent: ReceivedSpan) -> list[str]:
    return [span.name for span in tree if span.parent == parent.id]


class Sent:
    """Requests of each kind, of which each has a caller's span of its own; their spans have arrived.

    Attributes:
        spans: The receiver.
        prefix: Of the ids of all streams.
        answers: The responses to single steps by kind.
        parents: The callers' spans by kind.
        between_ns: The times before and after all requests, nanoseconds since 1970.
    """

    def __init__(self, spans: Receiver, service: Service) -> None:
        self.spans, self._service, self.prefix = spans, service, secrets.token_hex(4)
        self.answers: dict[str, dict[str, Any]] = {}
        self.parents: dict[str, Parent] = {}
        started = time.time_ns()
        self._step("first", Parent(sampled=False).headers, inputs=[1])
        self._step("step", inputs=[1])
        for seq in (1, 7):
            self._step(f"seq {seq}", stream="gap", inputs=[1], seq=seq)
        unreadable = service.path("fold", f"{self.prefix}.bad", "step")
        service.http.post(unreadable, content=b"{", headers=self._parent("unreadable"))
        with service.feed("fold", f"{self.prefix}.fed", additional_headers=self._parent("feed")) as feed:
            for _ in range(3):
                feed.send(json.dumps({"inputs": [1]}))
                feed.recv(timeout=20)
        bulk = {"streams": [f"{self.prefix}.{n}" for n in range(3)], "inputs": [[1], [2], [3]]}
        service.http.post("/v1/models/fold/step", json=bulk, headers=self._parent("bulk")).raise_for_status()
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 1]}
        infer = "/v2/models/stateless/infer"
        service.http.post(infer, json={"inputs": [tensor]}, headers=self._parent("infer")).raise_for_status()
        with_id = self._parent("with an id") | {"x-request-id": "a"}
        for _ in range(100):
            assert self._step("", with_id, stream="named", inputs=[1]).headers["x-request-id"] == "a"
        for headers in ({}, Parent(sampled=False).headers, {"traceparent": "00-none-1-01"}, {"x-request-id": "one"}):
            assert self._step("", headers, stream="unsampled", inputs=[1]).status_code == 200
        with service.feed("fold", f"{self.prefix}.unsampled") as feed:
            feed.send(json.dumps({"inputs": [1]}))
            feed.recv(timeout=20)
        self.between_ns = started, time.time_ns()

    def tree(self, kind: str) -> list[ReceivedSpan]:
        return self.spans.trace(self.parents[kind].trace)

    def _parent(self, kind: str) -> dict[str, str]:
        self.parents[kind] = Parent()
        return self.parents[kind].headers

    def _step(
        self, kind: str, headers: dict[str, str] | None = None, *, stream: str = "stepped", **body: Any
    ) -> httpx2.Response:
        sent = self._parent(kind) if headers is None else headers
        path = self._service.path("fold", f"{self.prefix}.{stream}", "step")
        answer = self._service.http.post(path, json=body, headers=sent)
        self.answers[kind] = answer.json()
        return answer


@pytest.fixture(scope="module", params=[True, False], ids=["fast path", "declared route"])
def sent(request: pytest.FixtureRequest, shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Sent:
    models = write_models(tmp_path_factory.mktemp("models"), fold, stateless)
    with receiver() as spans, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            patch.delenv(name)
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", spans.url)
        with running_service(shared_redis.url, models, lane=request.param) as service:
            found = Sent(spans, service)
    return found


def test_a_sampled_step_is_one_tree_linked_to_its_batch(sent: Sent) -> None:
    tree = sent.tree("step")
    root = root_of(tree)
    assert (root.name, root.parent) == (STEP, sent.parents["step"].span)
    assert children_of(tree, root) == PHASES
    assert len(tree) == 1 + len(PHASES)
    assert {
        name: root.attributes[f"stepwell.{name}"] for name in ("model", "stream", "step", "state_id", "version")
    } == {
        "model": "fold",
        "stream": f"{sent.prefix}.stepped",
        "step": 2,
        "state_id": sent.answers["step"]["state_id"],
        "version": 1,
    }
    assert root.attributes["http.response.status_code"] == 200
    [batch] = [span for span in sent.spans.named("batch") if (root.trace, root.id) in span.links]
    assert root.links == [(batch.trace, batch.id)]
    assert batch.links == [(root.trace, root.id)]
    assert batch.attributes == {"stepwell.model": "fold", "stepwell.rows": 1}


def test_the_phases_lie_in_the_request_one_after_the_other(sent: Sent) -> None:
    tree, (before, after) = sent.tree("step"), sent.between_ns
    root = root_of(tree)
    times = [at for name in PHASES for span in tree if span.name == name for at in (span.start_ns, span.end_ns)]
    slack_ns = 20_000  # each span's times are converted from the monotonic clock by themselves
    assert all(earlier <= later + slack_ns for earlier, later in itertools.pairwise(times))
    assert before - slack_ns <= root.start_ns <= times[0] + slack_ns
    assert times[-1] - slack_ns <= root.end_ns <= after + slack_ns


def test_each_message_of_a_sampled_feed_is_a_tree(sent: Sent) -> None:
    tree = sent.tree("feed")
    roots = [span for span in tree if span.kind == SERVER_KIND]
    assert [(span.name, span.parent) for span in roots] == [
        ("WS /v1/models/{model}/streams/{stream}/feed", sent.parents["feed"].span)
    ] * 3
    assert [span.attributes["stepwell.step"] for span in roots] == [1, 2, 3]
    assert [children_of(tree, root) for root in roots] == [PHASES] * 3
    assert [len(root.links) for root in roots] == [1, 1, 1]


def test_bulk_requests_and_infer_are_traced(sent: Sent) -> None:
    bulk, infer = sent.tree("bulk"), sent.tree("infer")
    assert root_of(bulk).attributes["stepwell.rows"] == 3
    assert {"queue", "load", "run", "commit"} <= {span.name for span in bulk}
    assert root_of(infer).name == "POST /v2/models/{model}/infer"
    assert {"queue", "run"} <= {span.name for span in infer}


def test_what_is_not_sampled_leaves_nothing(sent: Sent) -> None:
    roots = [span for span in sent.spans.spans if span.kind == SERVER_KIND]
    assert {span.trace for span in roots} == {one.trace for one in sent.parents.values()}
    batches = sent.spans.named("batch")
    assert {link for batch in batches for link in batch.links} <= {(span.trace, span.id) for span in roots}
    assert all(batch.links for batch in batches)


def test_a_request_id_does_not_hide_the_trace(sent: Sent) -> None:
    assert len([span for span in sent.tree("with an id") if span.name == STEP]) == 100


def test_a_refused_request_has_its_code(sent: Sent) -> None:
    roots = [root_of(sent.tree(kind)) for kind in ("seq 7", "unreadable")]
    assert [root.attributes["error.type"] for root in roots] == ["seq_gap", "bad_json"]
    assert [root.attributes["http.response.status_code"] for root in roots] == [409, 400]
    assert [root.is_error for root in roots] == [False, False]  # the client's mistakes


def test_a_record_from_the_cache_is_marked(traced: Traced, spans: Receiver, stream: str) -> None:
    parents = [Parent(), Parent()]
    with traced() as service:
        for parent in parents:
            service.http.post(service.path("fold", stream, "step"), json={"inputs": [1]}, headers=parent.headers)

    loads = [span for parent in parents for span in spans.trace(parent.trace) if span.name == "load"]
    cached = [span.attributes["stepwell.cached"] for span in loads]
    assert (cached[0], cached[-1]) == (False, True)
    assert cached.count(True) == 1


def test_every_request_has_its_own_trace_on_one_connection(traced: Traced, spans: Receiver, stream: str) -> None:
    """Also after the fast path has compiled the order of their headers, and has seen blocks of the same length."""
    parents = [Parent(sampled=i % 3 == 0) for i in range(240)]
    with traced() as service:
        for parent in parents:
            service.http.post(service.path("fold", stream, "step"), json={"inputs": [1]}, headers=parent.headers)

    found = {span.trace: span.attributes["stepwell.step"] for span in spans.named(STEP)}
    assert found == {parent.trace: i + 1 for i, parent in enumerate(parents) if i % 3 == 0}


@pytest.mark.parametrize(
    ("lane", "sampler"), [(True, "always_on"), (False, "parentbased_always_on"), (False, "traceidratio")]
)
def test_the_sampler_starts_traces(traced: Traced, spans: Receiver, stream: str, lane: bool, sampler: str) -> None:
    unsampled = Parent(sampled=False)
    with traced(lane=lane, OTEL_TRACES_SAMPLER=sampler) as service:
        answer = service.http.post(service.path("fold", stream, "step"), json={"inputs": [1]})
        service.http.post(service.path("fold", stream, "step"), json={"inputs": [1]}, headers=unsampled.headers)

    own = [span for span in spans.named(STEP) if not span.parent]
    assert len(own) == 1
    assert set(PHASES) <= {span.name for span in spans.trace(own[0].trace)}
    assert "x-request-id" not in answer.headers
    follows_parent = sampler.startswith("parentbased")
    assert len(spans.trace(unsampled.trace)) == (0 if follows_parent else 1 + len(PHASES))


@pytest.mark.parametrize(
    ("lane", "headers"),
    [(True, {}), (False, {"x-request-id": "order-8"})],
    ids=["fast path", "declared route, with an id"],
)
def test_log_lines_of_a_traced_request_have_its_trace_id(
    traced: Traced,
    stream: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lane: bool,
    headers: dict[str, str],
) -> None:
    def broken(_handler: StepHandler, _result: Any) -> bytes:
        raise RuntimeError("broken")

    parent = Parent()
    with traced(lane=lane) as service:
        monkeypatch.setattr(StepHandler, "encode_response", broken)
        service.http.post(service.path("fold", stream, "step"), json={"inputs": [1]}, headers=headers | parent.headers)

    [line] = [record for record in caplog.records if record.exc_info]
    assert getattr(line, "trace_id", None) == parent.trace
    assert getattr(line, "request_id", None) == headers.get("x-request-id", parent.trace)


def test_the_variables_mean_what_they_mean_everywhere(traced: Traced, spans: Receiver, stream: str) -> None:
    parent = Parent()
    with traced(
        OTEL_SERVICE_NAME="pumps",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment=test",
        OTEL_EXPORTER_OTLP_HEADERS="x-team=blue",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
    ) as service:
        service.http.post(service.path("fold", stream, "step"), json={"inputs": [1]}, headers=parent.headers)

    root = root_of(spans.trace(parent.trace))
    assert root.resource["service.name"] == "pumps"
    assert root.resource["deployment.environment"] == "test"
    assert root.resource["service.version"]
    assert root.headers["x-team"] == "blue"
    assert root.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize(
    "variables", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}], ids=lambda each: next(iter(each))
)
def test_traces_can_be_switched_off(traced: Traced, spans: Receiver, stream: str, variables: dict[str, str]) -> None:
    with traced(**variables) as service:
        service.http.post(service.path("fold", stream, "step"), json={"inputs": [1]}, headers=Parent().headers)
        assert service.app.state.context.tracer is None

    assert spans.spans == []


def test_a_receiver_that_is_away_delays_no_request_and_not_the_end(
    shared_redis: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with running_service(shared_redis.url, write_models(tmp_path, fold)) as service:
        longest = 0.0
        for _ in range(50):
            started = time.monotonic()
            answer = service.http.post(
                service.path("fold", stream, "step"), json={"inputs": [1]}, headers=Parent().headers
            )
            longest = max(longest, time.monotonic() - started)
            assert answer.status_code == 200
        ending = time.monotonic()
    assert longest < 10  # for which the exporter waits
    assert time.monotonic() - ending < 20


def test_sampled_requests_of_one_batch_share_its_span(traced: Traced, spans: Receiver, stream: str) -> None:
    """Requests that arrive together are one batch, with one span that is linked to each of them."""
    parents = [Parent() for _ in range(5)]
    with traced() as service, service.open_connection() as sock:
        body = b'{"inputs":[1]}'
        for i, parent in enumerate(parents):
            sock.sendall(
                b"POST %s HTTP/1.1\r\nhost: localhost\r\ntraceparent: %s\r\ncontent-length: %d\r\n\r\n%s"
                % (
                    service.path("fold", f"{stream}{i}", "step").encode(),
                    parent.headers["traceparent"].encode(),
                    len(body),
                    body,
                )
            )
        received = b""
        while received.count(b"200 OK") < len(parents):
            received += sock.recv(65536)

    batches = spans.named("batch")
    assert sum(len(batch.links) for batch in batches) == len(parents)
    assert {link for batch in batches for link in batch.links} == {
        (span.trace, span.id) for parent in parents for span in spans.trace(parent.trace) if span.name == STEP
    }


@pytest.mark.parametrize(
    ("flags", "variables", "found"),
    [
        ((), {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "protocol is 'grpc'"),
        (("--workers", "2"), {"OTEL_TRACES_EXPORTER": "zipkin"}, "'zipkin'"),
    ],
    ids=["protocol", "exporter, two workers"],
)
def test_what_is_not_supported_is_refused_at_the_start(
    tmp_path: Path, flags: tuple[str, ...], variables: dict[str, str], found: str
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
    env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", **variables}
    command = [*LAUNCH, "--models", str(write_models(tmp_path, fold)), "--port", "0", *flags]

    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert found in done.stderr
    assert "Traceback" not in done.stderr
