"""The Python client against real services: results equal the fold, also when connections or answers are lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Iterator
from decimal import Decimal
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.errors import ServiceError
from stepwell.requests.problems import problem_body
from stepwell_client import AsyncClient, Client, ClientError, StepResult
from stepwell_client.protocol.bulk_steps import BulkSteps
from stepwell_client.protocol.decoding import NoReply, RawReply
from stepwell_client.protocol.exchange import Exchange
from stepwell_client.protocol.requests import ClientRequest, StreamCursor
from stepwell_client.protocol.steps import ModelProtocol
from stepwell_client.wire.formats import JSON, MSGPACK, encode
from tests.api.running import running_service
from tests.graphs import fold, fold_reference, last_seen, latch, lstm, two_inputs, write_model, write_models
from tests.processes import ServiceProcess, free_port, service_process
from tests.python_client.transports import TRANSPORTS, engine_in_process
from tests.servers import Server

DOCS = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
XS = [7, -3, 2**40, 0, -(2**50), 11, 5, 1]
TIMEOUT_S = 3.0  # short, and enough for a step on a busy machine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of every kind, and the demo's."""
    folder = write_models(tmp_path_factory.mktemp("models"), fold, two_inputs, latch, lstm, last_seen)
    shutil.copy(str(files("stepwell.addons.demo") / "models" / "activity.onnx"), folder)
    return folder


@pytest.fixture(scope="module")
def one(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service with an embedded store; each test uses its own streams."""
    with service_process(models, tmp_path_factory.mktemp("sw")) as running_one:
        yield running_one


@pytest.fixture(scope="module", params=TRANSPORTS)
def url(request: pytest.FixtureRequest, models: Path) -> Iterator[str]:
    """The address of a service, by each transport."""
    if request.param == "http":
        one: ServiceProcess = request.getfixturevalue("one")
        yield one.url
    else:
        with engine_in_process(models) as engine:
            yield engine.url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as made:
        yield made


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """A stream id for one test alone."""
    return re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)


def ys(answers: list[StepResult]) -> list[int]:
    return [int(answer.output[0]) for answer in answers]


def error_of(call: Any, *args: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        call(*args)
    return caught.value


# -------------------------------------------------------------------- one stream


def test_steps_equal_the_fold(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)

    answers = [handle.step([x]) for x in XS]

    assert ys(answers) == fold_reference(XS)
    assert [answer.step for answer in answers] == list(range(1, len(XS) + 1))
    assert [answer.created for answer in answers] == [True] + [False] * (len(XS) - 1)


def test_a_chunk_returns_the_requested_predictions(client: Client, stream: str) -> None:
    chunk = [[x] for x in XS]
    whole = client.model("fold").stream(stream).steps(chunk)
    last = client.model("fold").stream(f"{stream}-b").steps(chunk, returns="last")

    assert (whole.output.ravel().tolist(), last.output.tolist()) == (fold_reference(XS), fold_reference(XS)[-1:])
    assert whole.step == last.step == len(XS)


def test_timesteps_of_a_source_are_applied_once_by_whoever_sends_them(url: str, client: Client, stream: str) -> None:
    """A second client reads the log again after a crash, in another chunk, with new timesteps behind it."""
    client.model("fold").stream(stream).steps([[x] for x in XS[:3]], source=("log", np.arange(3)))
    with Client(url) as other:
        handle = other.model("fold").stream(stream)
        chunk = handle.steps([[x] for x in XS[1:6]], source=("log", range(1, 6)))
        last = handle.step([XS[5]], source=("log", 5))
        following = handle.step([XS[6]])  # by the handle's position again
        passed = error_of(lambda: handle.step([XS[0]], source=("log", 0)))

    assert (chunk.output.ravel().tolist(), chunk.skipped, chunk.unknown) == (fold_reference(XS)[1:6], 2, 0)
    assert (ys([last]), last.skipped, last.step) == (fold_reference(XS)[5:6], 1, 6)
    assert (ys([following]), following.skipped) == (fold_reference(XS)[6:7], 0)
    assert (passed.code, passed.applied, passed.at) == ("source_passed", "yes", 5)
    assert (chunk.version, last.version, following.version) == (1, 1, None)


def test_outputs_of_a_source_that_are_not_known_any_more_are_counted(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)
    for first, end in ((0, 3), (3, 5)):
        handle.steps([[x] for x in XS[first:end]], source=("log", range(first, end)))
    again = handle.steps([[x] for x in XS[1:5]], source=("log", range(1, 5)))
    part = handle.steps([[x] for x in XS[1:4]], source=("log", range(1, 4)))

    assert (again.unknown, again.output.ravel().tolist()) == (2, [0, 0, *fold_reference(XS)[3:5]])
    assert (part.step, part.state_id) == (4, "")
    assert ys([handle.step([XS[5]])]) == fold_reference(XS)[5:6]


def test_steps_of_many_streams_may_have_sources(client: Client, stream: str) -> None:
    model, names = client.model("fold"), [f"{stream}{n}" for n in range(3)]
    for at, x in enumerate(XS[:2]):
        model.step_many({name: [x] for name in names}, sources=dict.fromkeys(names, ("log", at)))
    again = model.step_many(
        {name: [XS[1 + n]] for n, name in enumerate(names)},
        sources={name: (f"log-{n}" if n == 2 else "log", 1 + n) for n, name in enumerate(names)},
    )
    results = [again[name] for name in names]

    assert all(isinstance(result, StepResult) for result in results)
    assert [(result.skipped, result.step) for result in results if isinstance(result, StepResult)] == [
        (1, 2),
        (0, 3),
        (0, 3),
    ]
    assert ys([model.stream(names[0]).step([XS[2]])]) == fold_reference(XS)[2:3]
    status = model.stream(names[1]).status()
    assert status.source is not None
    assert status.source.at == 2


def test_a_status_has_the_position_of_the_stream(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)
    answer = handle.steps([[x] for x in XS])

    status = handle.status()

    assert (status.stream, status.model, status.version) == (stream, "fold", 1)
    assert (status.step, status.state_id) == (answer.step, answer.state_id)
    assert status.created_at <= status.updated_at
    assert status.expires_in_s > 0


# -------------------------------------------------------------------- arrays


def test_several_inputs_and_outputs_are_addressed_by_name(client: Client, stream: str) -> None:
    answer = client.model("two_inputs").stream(stream).step({"a": [1, 2], "b": np.int64(3)})

    assert {name: array.tolist() for name, array in answer.outputs.items()} == {"total": [4, 5], "last": 3}
    assert {name: array.dtype.name for name, array in answer.outputs.items()} == {"total": "int64", "last": "int32"}


def test_the_single_output_of_several_is_an_error(client: Client, stream: str) -> None:
    answer = client.model("two_inputs").stream(stream).step({"a": [1, 2], "b": 3})

    with pytest.raises(ClientError, match="2 outputs \\(total, last\\)"):
        _ = answer.output


def test_float64_is_cast_to_the_dtype_of_the_model(client: Client, stream: str) -> None:
    x = np.linspace(-1, 1, 4)

    double, single = (client.model("lstm").stream(f"{stream}{kind}").step(x.astype(kind)) for kind in ("f8", "f4"))

    assert np.array_equal(double.output, single.output)
    assert double.output.dtype == np.float32


UNFIT: list[tuple[str, Any, str]] = [
    ("fold", [1.5], "has dtype float64; the model takes int64"),
    ("fold", ["one"], "the model takes int64"),
    ("latch", [1, 0], "the model takes bool"),
    ("two_inputs", {"a": [1, 2], "b": 2**31}, "int32 holds -2147483648 to 2147483647"),
    ("two_inputs", [1, 2], "one array for the inputs a, b"),
    ("lstm", [[1.0], [1.0, 2.0]], "is not an array"),
    ("lstm", ["1", None, "2", "3"], "has '1'; expected numbers"),
    ("lstm", [True, None, 2.0, 3.0], "has True; expected numbers"),
    ("lstm", [1.0, 2.0], "shape"),
    ("lstm", {"z": [0.0] * 4}, '"z"'),
]


def test_an_input_that_does_not_fit_the_model_is_rejected(client: Client, stream: str) -> None:
    for model, x, words in UNFIT:
        error = error_of(client.model(model).stream(stream).step, x)

        assert (error.code, error.applied, error.retry) == ("bad_input", "no", "never")
        assert words in str(error)


# -------------------------------------------------------------------- two writers


def test_a_late_reset_does_not_discard_the_steps_of_another_handle(client: Client, stream: str) -> None:
    winner, loser = (client.model("fold").stream(stream) for _ in range(2))
    winner.step([7])
    loser.resume()
    winner.step([-3])

    assert error_of(loser.reset).code == "state_changed"
    assert winner.status().step == 2


def test_a_handle_that_starts_an_existing_stream_is_rejected(client: Client, stream: str) -> None:
    winner, loser = (client.model("fold").stream(stream) for _ in range(2))
    assert [winner.resume(), loser.resume()] == [0, 0]
    winner.step([7])

    error = error_of(loser.step, [5])

    assert (error.code, error.applied) == ("stream_exists", "no")


def test_a_handle_that_deleted_a_stream_does_not_step_a_new_one(client: Client, stream: str) -> None:
    handle, other = (client.model("fold").stream(stream) for _ in range(2))
    handle.step([7])
    handle.delete()
    other.step([-3])

    assert error_of(handle.step, [5]).code == "stream_exists"


def test_a_status_does_not_move_the_handle(client: Client, stream: str) -> None:
    """Otherwise a status request after a lost answer would turn the retry into another timestep."""
    winner, loser = (client.model("fold").stream(stream) for _ in range(2))
    winner.step([7])
    loser.resume()
    winner.step([-3])

    assert loser.status().step == 2
    assert error_of(loser.step, [5]).code == "state_changed"


def test_resending_a_lost_history_gives_the_same_history(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)
    first = [handle.step([x]).state_id for x in XS]
    client.model("fold").stream(stream).delete()

    error = error_of(handle.step, [1])

    assert (error.code, error.retry, error.expected) == ("stream_not_found", "resend_from", 1)
    assert handle.resume() == 0
    assert [handle.step([x]).state_id for x in XS] == first


# -------------------------------------------------------------------- many streams at once


def test_a_bulk_step_of_many_streams_equals_the_fold(client: Client, stream: str) -> None:
    model = client.model("fold")
    names = [f"{stream}{n}" for n in range(20)]

    rounds = [model.step_many({name: [x + n] for n, name in enumerate(names)}) for x in XS]

    for n, name in enumerate(names):
        answers = [answers[name] for answers in rounds]
        assert [answer.output[0] for answer in answers if isinstance(answer, StepResult)] == fold_reference(
            x + n for x in XS
        )


def test_a_bad_source_is_rejected(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)
    bad: list[Any] = ["log", ("log",), ("log", 1, 2), *(("log", at) for at in (1.5, "1", -1, 2**63, 2**64))]
    for source in bad:
        error = error_of(lambda source=source: handle.step([1], source=source))

        assert (error.code, error.applied, error.retry) == ("bad_request", "no", "never"), source


def test_the_positions_of_a_source_are_what_has_an_integer(client: Client, stream: str) -> None:
    class Offset:
        def __init__(self, at: int) -> None:
            self.at = at

        def __index__(self) -> int:
            return self.at

    handle = client.model("fold").stream(stream)
    at: Any
    for n, at in enumerate([np.array(0), np.int64(1), Offset(2)]):
        assert handle.step([n], source=("log", at)).step == n + 1
    for first, at in [(3, np.arange(3, 5)), (5, [Offset(5), np.array(6)])]:
        assert handle.steps([[1], [2]], source=("log", at)).step == first + 2


def test_a_stream_without_a_source_among_streams_with_one_is_named(client: Client, stream: str) -> None:
    inputs = {f"{stream}a": [1], f"{stream}b": [1]}
    error = error_of(lambda: client.model("fold").step_many(inputs, sources={f"{stream}a": ("log", 1)}))

    assert (error.code, error.applied) == ("bad_request", "no")
    assert f"{stream}b" in error.problem


def test_numbers_of_numpy_are_numbers_in_every_argument(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)
    seven: Any = np.int64(7)
    handle.step([1], source=("log", seven))

    assert handle.rollout(seven, [1], feedback={"x": "y"}).step == 8
    assert error_of(lambda: handle.rollout(3, [1], feedback=object())).code == "bad_request"


def test_missing_values_are_none_and_inputs_that_are_left_out(client: Client, stream: str) -> None:
    model = client.model("last_seen")
    handle = model.stream(f"{stream}a")
    handle.step({"a": [1, 2], "b": 3})

    assert handle.step({"a": None, "b": 4}).outputs["y"].tolist() == [1, 2]
    assert handle.step({}).outputs["z"] == 4
    gaps: Any = {"b": [5, None]}, {"a": [Decimal(7), None]}
    assert handle.steps({"a": None, **gaps[0]}).outputs["z"].tolist() == [5, 5]
    many = model.step_many({f"{stream}a": gaps[1], f"{stream}b": {"b": 8}})
    outputs = [one.outputs for one in many.values() if isinstance(one, StepResult)]
    assert [(one["y"].tolist(), one["z"].tolist()) for one in outputs] == [([7, 2], 5), ([0, 0], 8)]
    assert error_of(client.model("lstm").stream(stream).step, None).code == "bad_input"


def test_each_row_of_a_bulk_step_is_rejected_by_itself(client: Client, stream: str) -> None:
    """An id that is none, a shape, a name, a missing input: the other streams are stepped."""
    model = client.model("lstm")
    rows: dict[Any, Any] = {f"{stream}{n}": [0.5] * 4 for n in range(3)}
    rows |= {f"{stream}short": [0.5] * 3, f"{stream}name": {"y": [0.5] * 4}, f"{stream}none": {}, "no id": [0.5] * 4}
    unfit: list[Any] = [42, ("a",)]
    rows |= dict.fromkeys(unfit, [0.5] * 4)

    results = model.step_many(rows)

    assert list(results) == list(rows)
    codes = {name: one.code if isinstance(one, ClientError) else one.step for name, one in results.items()}
    assert codes == {
        **{f"{stream}{n}": 1 for n in range(3)},
        **dict.fromkeys([f"{stream}short", f"{stream}name", f"{stream}none"], "bad_input"),
        **dict.fromkeys((*unfit, "no id"), "bad_request"),
    }
    assert {one.applied for one in results.values() if isinstance(one, ClientError)} == {"no"}


def test_what_is_no_stream_id_is_named_without_a_request(client: Client) -> None:
    others: list[Any] = [42, None, b"a", ["a"]]
    for name in ("", ".", "..", "a/b", "a b", "x" * 129, *others):
        error = error_of(client.model("fold").stream, name)

        assert error.code == "bad_request"
        assert isinstance(name, str) or type(name).__name__ in error.problem


def test_threads_that_share_a_handle_take_turns(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)
    threads = [threading.Thread(target=lambda: [handle.step([1]) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert handle.step([1]).output[0] == fold_reference([1] * 41)[-1]


# -------------------------------------------------------------------- asyncio and the feed


async def test_a_feed_has_many_streams_in_flight(url: str, stream: str) -> None:
    async with AsyncClient(url) as client, client.model("fold").feed() as feed:

        async def live(name: str) -> list[StepResult]:
            return [await feed.step(name, [x]) for x in XS]

        found = await asyncio.gather(*(live(f"{stream}{n}") for n in range(20)))

    assert [ys(answers) for answers in found] == [fold_reference(XS)] * 20


async def test_a_rejected_step_leaves_the_feed_open(url: str, stream: str) -> None:
    async with AsyncClient(url) as client, client.model("fold").feed() as feed:
        refused, fine = await asyncio.gather(
            feed.step(f"{stream}a", [1, 2, 3]), feed.step(f"{stream}b", [7]), return_exceptions=True
        )
        after = await feed.step(f"{stream}a", [7])

    assert isinstance(refused, ClientError)
    assert (refused.code, refused.applied) == ("bad_input", "no")
    assert isinstance(fine, StepResult)
    assert ys([fine, after]) == fold_reference([7]) * 2


async def test_a_step_on_a_feed_may_have_a_source(url: str, stream: str) -> None:
    async with AsyncClient(url) as client, client.model("fold").feed() as feed:
        answers = [await feed.step(stream, [XS[at]], source=("log", at)) for at in (0, 1, 1, 2)]

    assert ys(answers) == [fold_reference(XS)[at] for at in (0, 1, 1, 2)]
    assert [answer.skipped for answer in answers] == [0, 0, 1, 0]


async def test_an_oversized_step_is_rejected_and_leaves_the_feed_open(url: str, stream: str) -> None:
    async with AsyncClient(url) as client, client.model("fold").feed() as feed:
        assert await code_of(feed.step(stream, np.zeros(2**21, np.int64))) == "too_large"

        assert ys([await feed.step(stream, [7])]) == fold_reference([7])


async def test_a_feed_and_handles_share_the_positions_of_streams(url: str, stream: str) -> None:
    async with AsyncClient(url) as client:
        model = client.model("fold")
        await model.stream(stream).prime([[x] for x in XS[:4]])
        async with model.feed() as feed:
            await feed.step(stream, [XS[4]])

        assert ys([await model.stream(stream).step([XS[5]])]) == fold_reference(XS)[5:6]


async def test_a_step_that_waits_when_its_feed_is_closed_gets_an_error(url: str, stream: str) -> None:
    async with AsyncClient(url) as client:
        feed = client.model("fold").feed()
        async with feed:
            await feed.step(stream, [7])

        with pytest.raises(ClientError, match="was closed") as caught:
            await feed.step(stream, [-3])

    assert (caught.value.code, caught.value.retry) == ("closed", "same")


# -------------------------------------------------------------------- lost answers


class CuttingProxy:
    """A TCP proxy in front of a service; `cut_answer` closes the connection instead of forwarding the next answer."""

    def __init__(self, service_port: int) -> None:
        self._service_port = service_port
        self._cut = threading.Event()
        self.has_cut = threading.Event()
        self._port = 0
        self.open()
        self.url = f"http://127.0.0.1:{self._port}"

    def cut_answer(self) -> None:
        self._cut.set()

    def open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def close(self) -> None:
        """Accept no more connections; existing ones stay open."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.create_connection(("127.0.0.1", self._service_port))
                threading.Thread(target=self._pass_on, args=(near, far), daemon=True).start()
                threading.Thread(target=self._pass_back, args=(far, near), daemon=True).start()

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_WR)

    def _pass_back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError), far, near:
            while data := far.recv(65536):
                if self._cut.is_set():
                    self._cut.clear()
                    self.has_cut.set()
                    break
                near.sendall(data)
            near.shutdown(socket.SHUT_RDWR)  # close() alone would wait for the other thread


@pytest.fixture
def proxy(one: ServiceProcess) -> Iterator[CuttingProxy]:
    made = CuttingProxy(one.port)
    yield made
    made.close()


async def test_a_feed_retries_a_step_whose_answer_was_lost(proxy: CuttingProxy, stream: str) -> None:
    """It retries at once: the deadline is too short to wait for the timeout of an attempt."""
    async with AsyncClient(proxy.url, timeout=10) as client, client.model("fold").feed() as feed:
        await asyncio.gather(*(feed.step(f"{stream}{n}", [7]) for n in range(3)))
        proxy.cut_answer()

        again = await asyncio.gather(*(feed.step(f"{stream}{n}", [-3]) for n in range(3)))

    assert ys(list(again)) == [fold_reference([7, -3])[-1]] * 3
    assert any(answer.replayed for answer in again)


def test_a_call_that_timed_out_can_be_repeated(proxy: CuttingProxy, stream: str) -> None:
    with Client(proxy.url, timeout=TIMEOUT_S) as client:
        handle = client.model("fold").stream(stream)
        handle.step([7])
        proxy.cut_answer()
        proxy.close()

        lost, refused = error_of(handle.step, [-3]), error_of(handle.step, [-3])
        proxy.open()
        again = handle.step([-3])

    assert (lost.code, lost.applied, lost.retry) == ("no_answer", "unknown", "same")
    assert (refused.code, refused.applied, refused.retry) == ("no_answer", "no", "same")
    assert (again.replayed, again.step) == (True, 2)


def test_a_fork_that_timed_out_can_be_repeated(proxy: CuttingProxy, stream: str) -> None:
    to = f"{stream}-b"
    with Client(proxy.url, timeout=TIMEOUT_S) as client:
        handle = client.model("fold").stream(stream)
        handle.step([7])
        proxy.cut_answer()
        proxy.close()

        lost, refused = (error_of(handle.fork, to) for _ in range(2))
        proxy.open()
        fork = handle.fork(to)
        done = error_of(handle.fork, to)

        assert (lost.code, lost.applied, lost.retry) == ("no_answer", "unknown", "same")
        assert (refused.code, refused.applied) == ("no_answer", "no")
        assert ys([fork.step([-3])]) == fold_reference([7, -3])[-1:]
        assert (done.code, done.applied) == ("stream_exists", "no")


@pytest.mark.parametrize("snapshot", [None, "s"])
def test_a_fork_of_another_position_or_snapshot_is_another_call(
    proxy: CuttingProxy, stream: str, snapshot: str | None
) -> None:
    to = f"{stream}-b"
    with Client(proxy.url, timeout=TIMEOUT_S) as client:
        handle = client.model("fold").stream(stream)
        handle.step([7])
        handle.take_snapshot("s")
        proxy.cut_answer()
        proxy.close()

        lost = error_of(handle.fork, to)
        proxy.open()
        if snapshot is None:
            handle.step([-3])
        other = error_of(lambda: handle.fork(to, snapshot=snapshot))

    assert (lost.code, lost.applied) == ("no_answer", "unknown")
    assert (other.code, other.applied, other.retry) == ("stream_exists", "no", "never")


@pytest.mark.parametrize("call", ["reset", "put_state"])
def test_a_call_that_created_a_stream_can_be_repeated_and_does_not_undo_later_steps(
    proxy: CuttingProxy, one: ServiceProcess, stream: str, call: str
) -> None:
    with Client(proxy.url, timeout=TIMEOUT_S) as client, Client(one.url) as another:
        model = client.model("fold")
        model.stream(f"{stream}-a").reset()
        state, handle = model.stream(f"{stream}-a").state(), model.stream(stream)
        handle.resume()
        arguments = [] if call == "reset" else [state]
        proxy.cut_answer()
        proxy.close()

        lost = error_of(getattr(handle, call), *arguments)
        proxy.open()
        another.model("fold").stream(stream).step([7])
        again = getattr(handle, call)(*arguments)

        assert (lost.code, lost.applied) == ("no_answer", "unknown")
        assert (again.replayed, again.step, handle.status().step) == (True, 0, 1)


async def test_a_step_on_a_feed_that_timed_out_can_be_repeated(proxy: CuttingProxy, stream: str) -> None:
    async with AsyncClient(proxy.url, timeout=TIMEOUT_S) as client, client.model("fold").feed() as feed:
        await feed.step(stream, [7])
        proxy.cut_answer()
        proxy.close()

        with pytest.raises(ClientError) as lost:
            await feed.step(stream, [-3])
        with pytest.raises(ClientError) as refused:
            await feed.step(stream, [-3])
        proxy.open()
        again = await feed.step(stream, [-3])

    assert (lost.value.code, lost.value.applied) == ("no_answer", "unknown")
    assert (refused.value.code, refused.value.applied) == ("no_answer", "no")
    assert (again.replayed, again.step) == (True, 2)


def test_a_call_to_an_unreachable_service_ends_in_time(stream: str) -> None:
    with Client(f"http://127.0.0.1:{free_port()}", timeout=0.3) as client:
        error = error_of(client.model("fold").stream(stream).step, [7])

    assert (error.code, error.applied, error.retry) == ("no_answer", "no", "same")


def test_an_address_that_drops_packets_leaves_time_for_the_others(
    one: ServiceProcess, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name with two addresses, of which the first accepts no connection: its queue is full."""
    port = int(one.url.rsplit(":", 1)[1])
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.2", port), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
        with Client(f"http://two.test:{port}", timeout=6) as client:
            assert client.model("fold").stream(stream).step([7]).step == 1


def steps_around(killed: threading.Event, under_way: threading.Event) -> Iterator[int]:
    """Yield the numbers of the steps to take: until the service was killed, and 20 more."""
    n = 0
    while not killed.is_set():
        if n == 5:
            under_way.set()
        yield n
        n += 1
    yield from range(n, n + 20)


async def test_a_killed_service_loses_and_duplicates_nothing_over_any_transport(
    one: ServiceProcess, stream: str
) -> None:
    """The service is killed during steps and started again; the clients are not notified."""
    killed = threading.Event()
    doors = {door: threading.Event() for door in ("sync", "async", "feed")}

    def kill() -> None:
        for under_way in doors.values():
            under_way.wait(60)
        one.kill()
        killed.set()
        one.launch()

    def run_sync() -> list[StepResult]:
        with Client(one.url) as client:
            handle = client.model("fold").stream(f"{stream}-sync")
            return [handle.step([n]) for n in steps_around(killed, doors["sync"])]

    async with AsyncClient(one.url) as client, client.model("fold").feed() as feed:

        async def run_async(number: int) -> list[StepResult]:
            handle = client.model("fold").stream(f"{stream}-async{number}")
            return [await handle.step([n]) for n in steps_around(killed, doors["async"])]

        async def run_feed(number: int) -> list[StepResult]:
            name = f"{stream}-feed{number}"
            return [await feed.step(name, [n]) for n in steps_around(killed, doors["feed"])]

        killing = asyncio.create_task(asyncio.to_thread(kill))
        found = await asyncio.gather(
            asyncio.to_thread(run_sync),
            *(run_async(number) for number in range(4)),
            *(run_feed(number) for number in range(4)),
        )
        await killing

    assert [ys(answers) for answers in found] == [fold_reference(range(len(answers))) for answers in found]
    assert [answers[-1].step for answers in found] == [len(answers) for answers in found]


@pytest.mark.parametrize("end", [ServiceProcess.kill, ServiceProcess.stop])
async def test_a_restart_between_two_steps_is_not_noticed(one: ServiceProcess, stream: str, end: Any) -> None:
    client = Client(one.url)
    handle = client.model("fold").stream(stream)
    async with AsyncClient(one.url) as aclient, aclient.model("fold").feed() as feed:
        before = [handle.step([x]) for x in XS[:4]], [await feed.step(f"{stream}-feed", [x]) for x in XS[:4]]
        end(one)
        one.launch()
        after = [handle.step([x]) for x in XS[4:]], [await feed.step(f"{stream}-feed", [x]) for x in XS[4:]]

    assert [ys(early + late) for early, late in zip(before, after, strict=True)] == [fold_reference(XS)] * 2


# -------------------------------------------------------------------- retries


def problem(code: str, **more: Any) -> bytes:
    return problem_body(ServiceError(code, "Found this.", **more))


def exchanges(now: Iterator[float] | None = None, jitter: float = 1.0) -> BulkSteps:
    return BulkSteps("m", 60, clock=lambda: next(now) if now else 0.0, jitter=lambda: jitter)


def begin(exchange: Exchange[Any], *got: RawReply | NoReply) -> ClientRequest:
    """Drive an exchange through these replies, and return its next request."""
    ask = next(exchange)
    for reply in got:
        ask = exchange.send(reply)
    return ask


LOST = NoReply("The line went dead.", sent=True)
REFUSED = NoReply("Nobody listens.", sent=False)
BUSY = RawReply(503, problem("overloaded"), JSON)
DESCRIBED = RawReply(200, encode({"inputs": [{"name": "x", "dtype": "int64", "shape": [1]}]}, MSGPACK), MSGPACK)
NONE_THERE = RawReply(404, problem("stream_not_found"), JSON)
CHANGED = RawReply(409, problem("state_changed"), JSON)


def test_pauses_grow_up_to_two_seconds() -> None:
    exchange = exchanges().status(StreamCursor("s"))
    begin(exchange)

    waits = [exchange.send(LOST).wait for _ in range(8)]

    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])


def test_pauses_are_random_and_at_least_as_long_as_the_service_asks_for() -> None:
    asked = RawReply(503, problem("overloaded"), JSON, retry_after=7.0)

    assert begin(exchanges(jitter=0.5).status(StreamCursor("s")), LOST).wait == pytest.approx(0.025)
    assert begin(exchanges(jitter=0.0).status(StreamCursor("s")), asked).wait == 7.0


def test_no_pause_exceeds_the_remaining_time() -> None:
    asked = RawReply(503, problem("overloaded"), JSON, retry_after=61.0)

    error = error_of(begin, exchanges().status(StreamCursor("s")), asked)

    assert (error.code, error.retry_after) == ("overloaded", 61.0)


def test_an_attempt_leaves_time_for_others() -> None:
    first = [begin(ModelProtocol("m", t, clock=lambda: 0.0).status(StreamCursor("s"))).timeout for t in (5, 60)]

    assert first == [5, 15]


def test_a_retry_is_the_same_request() -> None:
    exchange = exchanges().step(StreamCursor("s", 4, "history", known=True), [7])
    first = begin(exchange, DESCRIBED)

    again = exchange.send(LOST)

    assert (again.method, again.path, again.document) == (first.method, first.path, first.document)
    assert first.document is not None
    assert (first.document["seq"], first.document["after"]) == (5, "history")


def test_an_error_takes_all_attempts_into_account() -> None:
    """The state may have been changed by the step whose answer was lost."""
    attempts: list[tuple[list[RawReply | NoReply], str]] = [
        ([], "no"), ([BUSY], "no"), ([REFUSED], "no"), ([LOST], "unknown"), ([LOST, BUSY], "unknown")
    ]  # fmt: skip
    for before, applied in attempts:
        error = error_of(begin, exchanges().step(StreamCursor("s"), [7]), DESCRIBED, NONE_THERE, *before, CHANGED)

        assert (error.code, error.applied) == ("state_changed", applied), before


def test_only_the_failed_rows_of_a_bulk_step_are_retried() -> None:
    places = [StreamCursor(name, known=True) for name in "abc"]
    exchange = exchanges().step_many(places, {name: [7] for name in "abc"})
    begin(exchange, DESCRIBED)

    again = exchange.send(bulk_reply({"1": "overloaded", "2": "state_changed"}))

    assert again.document is not None
    assert again.document["streams"] == ["b"]
    assert again.wait > 0


def test_answered_rows_are_kept_when_the_retry_gets_no_answer() -> None:
    exchange = exchanges(now=iter([0, 0, 0, 0, 0, 99])).step_many(
        [StreamCursor(n, known=True) for n in "abc"], {name: [7] for name in "abc"}
    )
    begin(exchange, DESCRIBED, bulk_reply({"1": "overloaded", "2": "state_changed"}))

    with pytest.raises(StopIteration) as end:
        exchange.send(LOST)

    found = {name: getattr(result, "code", "answered") for name, result in end.value.value.items()}
    assert found == {"a": "answered", "b": "no_answer", "c": "state_changed"}


def test_a_bulk_step_that_is_cancelled_between_its_attempts_can_be_repeated() -> None:
    """It has returned no result, so its caller steps all streams again: those that were answered, too."""
    places = [StreamCursor(name, 4, "history", known=True) for name in "abc"]
    model, xs = exchanges(), {name: [7] for name in "abc"}
    cancelled = model.step_many(places, xs)
    begin(cancelled, DESCRIBED, bulk_reply({"1": "overloaded"}))
    cancelled.close()

    again = begin(model.step_many(places, xs))

    assert again.document is not None
    assert (again.document["seq"], again.document["after"]) == ([5] * 3, ["history"] * 3)
    assert all(cursor.in_doubt for cursor in places)


@pytest.mark.parametrize("later", [BUSY, LOST])
def test_the_outcome_of_a_row_stays_unknown_whatever_a_later_attempt_gets(later: RawReply | NoReply) -> None:
    place = {name: StreamCursor(name, 4, "history", known=True) for name in "abc"}
    exchange = exchanges(now=iter([0, 0, 0, 0, 0, 99])).step_many([*place.values()], {name: [7] for name in "abc"})
    begin(exchange, DESCRIBED, bulk_reply({"1": "outcome_unknown"}, applied="unknown"))

    with pytest.raises(StopIteration) as end:
        exchange.send(later)

    assert end.value.value["b"].applied == "unknown"
    assert [cursor.in_doubt for cursor in place.values()] == [False, True, False]


def test_streams_of_a_second_request_are_not_in_doubt_because_of_the_first() -> None:
    old, new = StreamCursor("old", 4, "history", known=True), StreamCursor("new", known=True)
    exchange = exchanges().step_many([old, new], {"old": [7], "new": [7]})
    begin(exchange, DESCRIBED, LOST, bulk_reply({}, rows=1))

    with pytest.raises(StopIteration) as end:
        exchange.send(CHANGED)

    assert (end.value.value["old"].step, end.value.value["new"].applied) == (5, "no")
    assert (old.in_doubt, new.in_doubt) == (False, False)


def test_streams_whose_request_was_not_sent_are_not_in_doubt() -> None:
    old, new = StreamCursor("old", 4, "history", known=True), StreamCursor("new", known=True)
    exchange = exchanges(now=iter([0, 0, 0, 99])).step_many([old, new], {"old": [7], "new": [7]})

    assert error_of(begin, exchange, DESCRIBED, LOST).applied == "unknown"
    assert (old.in_doubt, new.in_doubt) == (True, False)


def bulk_reply(errors: dict[str, str], *, rows: int = 3, **more: Any) -> RawReply:
    """Return an answer for some streams, some of which failed."""
    document = {
        "outputs": {"y": {"d": "int64", "s": [rows, 1], "b": bytes(8 * rows)}},
        "step": [None if str(i) in errors else 5 for i in range(rows)],
        "state_id": [None if str(i) in errors else "id" for i in range(rows)],
        "errors": {i: json.loads(problem(code, **more)) for i, code in errors.items()},
    }
    return RawReply(200, encode(document, MSGPACK), MSGPACK)


def test_an_error_page_of_a_proxy_is_not_an_answer() -> None:
    for status, retry in ((502, "same"), (504, "same"), (404, "never"), (301, "never")):
        page = RawReply(status, b"<html>Bad Gateway</html>", JSON)
        exchange = ModelProtocol("m", 0, clock=lambda: 0.0).step(StreamCursor("s", known=True), [7])

        error = error_of(begin, exchange, DESCRIBED, page)

        assert (error.code, error.applied, error.retry) == ("unreadable_answer", "unknown", retry)
        assert "Bad Gateway" in str(error)


# -------------------------------------------------------------------- other


def test_an_invalid_url_or_key_is_rejected_without_a_request() -> None:
    for url in ("", "localhost:8000", "redis://localhost", "http://", "http://localhost:99999"):
        assert error_of(Client, url).code == "bad_url"
    for key in ("", "secret\n", "schlüssel"):
        error = error_of(lambda key=key: Client("http://localhost:8000", key=key))

        assert error.code == "bad_request"
        assert "secret" not in str(error)


def test_a_client_may_have_no_time_limit_and_keep_nothing(url: str, stream: str) -> None:
    with Client(url, timeout=math.inf, keep_bytes=-1, keep_streams=-1) as client:
        assert client.model("fold").stream(stream).step([1]).step == 1


def test_a_missing_model_is_not_found(client: Client, stream: str) -> None:
    assert error_of(client.model("other").stream(stream).step, [7]).code == "model_not_found"
    assert error_of(client.model, "../secret").code == "bad_request"


def test_preconditions_are_sent_to_a_service_that_requires_them(
    shared_redis: Server, tmp_path: Path, stream: str
) -> None:
    write_model(tmp_path, "fold", fold)
    with (
        running_service(shared_redis.url, tmp_path, require_preconditions=True) as strict,
        Client(f"http://127.0.0.1:{strict.port}") as client,
    ):
        handle = client.model("fold").stream(stream)

        assert handle.reset().step == 0
        assert handle.step([7]).step == 1
        handle.delete()
        assert handle.step([7]).created


def write_keys(file: Path, **scopes: list[str]) -> Path:
    """Write a keys file and move it into place; each key is its own name."""
    keys = [{"id": k, "sha256": sha256(k.encode()).hexdigest(), "tenant": "a", "scopes": scopes[k]} for k in scopes]
    partial = file.with_suffix(".new")
    partial.write_text(json.dumps({"keys": keys}))
    return partial.replace(file)


async def test_a_key_allows_the_operations_of_its_scopes(shared_redis: Server, tmp_path: Path, stream: str) -> None:
    write_model(tmp_path / "models", "fold", fold)
    keys = write_keys(tmp_path / "keys.json", full=["step", "read"], reader=["read"])
    with running_service(shared_redis.url, tmp_path / "models", api_keys_file=keys) as keyed:
        url = f"http://127.0.0.1:{keyed.port}"
        async with AsyncClient(url, "full") as client, client.model("fold").feed() as feed:
            assert (await client.model("fold").stream(stream).step([7])).step == 1
            assert (await feed.step(stream, [7])).step == 2
        async with AsyncClient(url, "reader") as client, client.model("fold").feed() as feed:
            assert await code_of(client.model("fold").stream(stream).step([7])) == "forbidden"
            assert await code_of(feed.step(stream, [7])) == "forbidden"
        async with AsyncClient(url) as client:
            assert await code_of(client.model("fold").stream(stream).resume()) == "unauthenticated"


async def test_a_feed_whose_key_is_revoked_gets_an_error(shared_redis: Server, tmp_path: Path, stream: str) -> None:
    """The error names no step, since the service no longer reads messages."""
    write_model(tmp_path / "models", "fold", fold)
    keys = write_keys(tmp_path / "keys.json", mine=["step", "read"], other=[])
    with running_service(shared_redis.url, tmp_path / "models", api_keys_file=keys) as keyed:
        url = f"http://127.0.0.1:{keyed.port}"
        async with AsyncClient(url, "mine") as client, client.model("fold").feed() as feed:

            async def keep_stepping() -> None:
                while True:
                    await feed.step(stream, [7])

            await feed.step(stream, [7])
            write_keys(keys, other=[])

            with pytest.raises(ClientError) as caught:
                await keep_stepping()

    assert (caught.value.code, caught.value.applied) == ("unauthenticated", "no")


async def code_of(call: Awaitable[Any]) -> str:
    with pytest.raises(ClientError) as caught:
        await call
    return caught.value.code


def test_the_client_imports_no_server_modules() -> None:
    heavy = "fastapi starlette uvicorn redis onnxruntime prometheus_client typer"
    code = f"import stepwell_client, sys; print([name for name in '{heavy}'.split() if name in sys.modules])"

    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_examples_in_the_docs_print_what_they_show(one: ServiceProcess, models: Path, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(models)
    shown = "".join(re.findall(r"```text\n(.*?)```", DOCS, re.S))
    docs = DOCS if find_spec("pandas") else re.sub(r"<!-- pandas -->.*?<!-- /pandas -->", "", DOCS, flags=re.S)
    code = "".join(re.findall(r"```python\n(.*?)```", docs, re.S))
    assert ":8000" in code

    code = code.replace(":8000", f":{one.port}")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout == shown
