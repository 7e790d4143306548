"""The Python client against real services: equal to the fold, whatever is lost on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Iterator
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.problems import problem_body
from service.client import Answer, AsyncClient, Client, ClientError
from service.client.exchanges import Ask, Exchange, ModelExchanges, Place
from service.client.replies import Lost, Reply
from service.errors import ServiceError
from service.wire.formats import JSON, MSGPACK, encode
from tests.api.running import running_service
from tests.graphs import fold, fold_reference, latch, lstm, two_inputs, write_model
from tests.processes import Service, free_port, service
from tests.servers import Server

DOCS = (Path(__file__).parents[1] / "docs" / "client.md").read_text()
XS = [7, -3, 2**40, 0, -(2**50), 11, 5, 1]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on its embedded store, with the demo's model beside ours; tests keep to streams of their own."""
    models = tmp_path_factory.mktemp("models")
    for build in (fold, two_inputs, latch, lstm):
        write_model(models, build.__name__, build)
    shutil.copy(str(files("service.demo") / "models" / "activity.onnx"), models)
    with service(models, tmp_path_factory.mktemp("sw")) as running_one:
        yield running_one


@pytest.fixture
def client(one: Service) -> Iterator[Client]:
    with Client(one.url) as made:
        yield made


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """A stream id that no other test has."""
    return re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)


def ys(answers: list[Answer]) -> list[int]:
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


@pytest.mark.parametrize(("returns", "expected"), [("all", fold_reference(XS)), ("last", fold_reference(XS)[-1:])])
def test_a_chunk_answers_what_is_asked_for(client: Client, stream: str, returns: Any, expected: list[int]) -> None:
    answer = client.model("fold").stream(stream).steps([[x] for x in XS], returns=returns)

    assert answer.output.ravel().tolist() == expected
    assert answer.step == len(XS)


def test_a_primed_stream_goes_on_from_its_history(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)

    primed = handle.prime([[x] for x in XS[:5]])

    assert (primed.step, primed.outputs) == (5, {})
    assert ys([handle.step([x]) for x in XS[5:]]) == fold_reference(XS)[5:]


def test_after_a_reset_the_stream_begins_again(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)
    handle.step([99])

    assert handle.reset().step == 0
    assert ys([handle.step([x]) for x in XS]) == fold_reference(XS)


def test_a_deleted_stream_begins_anew(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)
    handle.step([99])
    handle.delete()

    assert error_of(handle.status).code == "stream_not_found"
    assert handle.step([7]).created


def test_a_status_tells_where_the_stream_stands(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)
    answer = handle.steps([[x] for x in XS])

    status = handle.status()

    assert (status.stream, status.model, status.version) == (stream, "fold", 1)
    assert (status.step, status.state_id) == (answer.step, answer.state_id)
    assert status.created_at <= status.updated_at
    assert status.expires_in_s > 0


def test_a_fresh_handle_goes_on_where_the_stream_stands(client: Client, stream: str) -> None:
    client.model("fold").stream(stream).steps([[x] for x in XS[:5]])

    fresh = client.model("fold").stream(stream)

    assert ys([fresh.step([x]) for x in XS[5:]]) == fold_reference(XS)[5:]


# -------------------------------------------------------------------- arrays


def test_several_inputs_and_outputs_go_by_name(client: Client, stream: str) -> None:
    answer = client.model("two_inputs").stream(stream).step({"a": [1, 2], "b": np.int64(3)})

    assert {name: array.tolist() for name, array in answer.outputs.items()} == {"total": [4, 5], "last": 3}
    assert {name: array.dtype.name for name, array in answer.outputs.items()} == {"total": "int64", "last": "int32"}


def test_the_only_output_of_several_is_refused(client: Client, stream: str) -> None:
    answer = client.model("two_inputs").stream(stream).step({"a": [1, 2], "b": 3})

    with pytest.raises(ClientError, match="2 outputs \\(total, last\\)"):
        _ = answer.output


def test_double_precision_becomes_the_models_own(client: Client, stream: str) -> None:
    x = np.linspace(-1, 1, 4)

    double, single = (client.model("lstm").stream(f"{stream}{kind}").step(x.astype(kind)) for kind in ("f8", "f4"))

    assert np.array_equal(double.output, single.output)
    assert double.output.dtype == np.float32


def test_an_output_is_an_array_of_ones_own(client: Client, stream: str) -> None:
    answer = client.model("latch").stream(stream).step([True, False])

    answer.output[1] = True

    assert answer.output.tolist() == [True, True]


@pytest.mark.parametrize(
    ("model", "x", "words"),
    [
        ("fold", [1.5], "has dtype float64; the model takes int64"),
        ("fold", ["one"], "the model takes int64"),
        ("latch", [1, 0], "the model takes bool"),
        ("two_inputs", {"a": [1, 2], "b": 2**31}, "int32 holds -2147483648 to 2147483647"),
        ("two_inputs", [1, 2], "one array for the inputs a, b"),
        ("lstm", [[1.0], [1.0, 2.0]], "is no array"),
        ("lstm", [1.0, 2.0], "shape"),
        ("lstm", {"z": [0.0] * 4}, '"z"'),
    ],
)
def test_what_does_not_fit_the_model_is_refused(client: Client, stream: str, model: str, x: Any, words: str) -> None:
    error = error_of(client.model(model).stream(stream).step, x)

    assert (error.code, error.applied, error.retry) == ("bad_input", "no", "never")
    assert words in str(error)


def test_values_that_are_not_finite_are_refused_by_the_service(client: Client, stream: str) -> None:
    assert error_of(client.model("lstm").stream(stream).step, [0.0, np.nan, 0.0, 0.0]).code == "non_finite"


# -------------------------------------------------------------------- two writers


def test_of_two_handles_the_loser_is_told_that_the_state_changed(client: Client, stream: str) -> None:
    winner, loser = (client.model("fold").stream(stream) for _ in range(2))
    winner.step([7])
    loser.resume()
    winner.step([-3])

    error = error_of(loser.step, [5])

    assert (error.code, error.applied, error.retry, error.step, error.expected) == (
        "state_changed",
        "no",
        "never",
        2,
        3,
    )
    assert winner.step([2**40]).output[0] == fold_reference(XS[:3])[-1]


def test_a_late_reset_does_not_wipe_anothers_steps(client: Client, stream: str) -> None:
    winner, loser = (client.model("fold").stream(stream) for _ in range(2))
    winner.step([7])
    loser.resume()
    winner.step([-3])

    assert error_of(loser.reset).code == "state_changed"
    assert winner.status().step == 2


def test_who_begins_a_stream_second_does_not_mix_in(client: Client, stream: str) -> None:
    winner, loser = (client.model("fold").stream(stream) for _ in range(2))
    assert [winner.resume(), loser.resume()] == [0, 0]
    winner.step([7])

    error = error_of(loser.step, [5])

    assert (error.code, error.applied) == ("seq_conflict", "no")


def test_who_deleted_a_stream_does_not_mix_in_when_another_begins_it(client: Client, stream: str) -> None:
    handle, other = (client.model("fold").stream(stream) for _ in range(2))
    handle.step([7])
    handle.delete()
    other.step([-3])

    assert error_of(handle.step, [5]).code == "seq_conflict"


def test_a_status_does_not_move_the_handle(client: Client, stream: str) -> None:
    """Or who asks for it after a lost answer would send the same timestep as another one."""
    winner, loser = (client.model("fold").stream(stream) for _ in range(2))
    winner.step([7])
    loser.resume()
    winner.step([-3])

    assert loser.status().step == 2
    assert error_of(loser.step, [5]).code == "state_changed"


def test_resuming_goes_on_from_where_the_stream_stands(client: Client, stream: str) -> None:
    other, handle = (client.model("fold").stream(stream) for _ in range(2))
    handle.step([7])
    other.step([-3])

    assert handle.resume() == 2
    assert handle.step([2**40]).output[0] == fold_reference(XS[:3])[-1]


def test_a_lost_history_sent_again_is_the_same_history(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)
    first = [handle.step([x]).state_id for x in XS]
    client.model("fold").stream(stream).delete()

    error = error_of(handle.step, [1])

    assert (error.code, error.retry, error.expected) == ("stream_not_found", "resend_from", 1)
    assert handle.resume() == 0
    assert [handle.step([x]).state_id for x in XS] == first


# -------------------------------------------------------------------- many streams at once


def test_many_streams_move_together_and_equal_the_fold(client: Client, stream: str) -> None:
    model = client.model("fold")
    names = [f"{stream}{n}" for n in range(20)]

    rounds = [model.step_many({name: [x + n] for n, name in enumerate(names)}) for x in XS]

    for n, name in enumerate(names):
        answers = [answers[name] for answers in rounds]
        assert [answer.output[0] for answer in answers if isinstance(answer, Answer)] == fold_reference(
            x + n for x in XS
        )


def test_a_stream_that_fails_has_its_error_in_the_others_midst(client: Client, stream: str) -> None:
    model = client.model("fold")
    model.step_many({f"{stream}{n}": [7] for n in range(3)})
    client.model("fold").stream(f"{stream}1").step([0])

    answers = model.step_many({f"{stream}{n}": [-3] for n in range(3)})

    fine, failed, other = (answers[f"{stream}{n}"] for n in range(3))
    assert isinstance(failed, ClientError)
    assert (failed.code, failed.applied, failed.step) == ("state_changed", "no", 2)
    assert ys([answer for answer in (fine, other) if isinstance(answer, Answer)]) == [fold_reference([7, -3])[-1]] * 2


def test_handles_and_many_streams_of_one_model_know_the_same(client: Client, stream: str) -> None:
    model = client.model("fold")
    model.stream(stream).step([7])
    model.step_many({stream: [-3]})

    assert model.stream(stream).step([2**40]).output[0] == fold_reference(XS[:3])[-1]


def test_rows_of_different_shapes_are_refused(client: Client, stream: str) -> None:
    error = error_of(client.model("lstm").step_many, {f"{stream}a": [0.0] * 4, f"{stream}b": [0.0] * 3})

    assert (error.code, error.applied) == ("bad_input", "no")


def test_threads_that_share_a_handle_wait_for_one_another(client: Client, stream: str) -> None:
    handle = client.model("fold").stream(stream)
    threads = [threading.Thread(target=lambda: [handle.step([1]) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert handle.step([1]).output[0] == fold_reference([1] * 41)[-1]


# -------------------------------------------------------------------- asyncio and the feed


async def test_the_async_client_does_all_that_the_other_does(one: Service, stream: str) -> None:
    async with AsyncClient(one.url) as client:
        model = client.model("fold")
        handle = model.stream(stream)
        assert await handle.resume() == 0
        await handle.step([99])
        assert (await handle.reset()).step == 0
        assert (await handle.prime([[x] for x in XS[:2]])).outputs == {}
        assert (await handle.steps([[x] for x in XS[2:5]])).output.ravel().tolist() == fold_reference(XS)[2:5]
        many = (await model.step_many({stream: [XS[5]]}))[stream]
        assert isinstance(many, Answer)
        assert ys([many, await handle.step([XS[6]])]) == fold_reference(XS)[5:7]
        assert (await handle.status()).step == 7
        await handle.delete()
        assert await client.model("fold").stream(stream).resume() == 0


async def test_a_feed_has_many_streams_in_flight(one: Service, stream: str) -> None:
    async with AsyncClient(one.url) as client, client.model("fold").feed() as feed:

        async def live(name: str) -> list[Answer]:
            return [await feed.step(name, [x]) for x in XS]

        found = await asyncio.gather(*(live(f"{stream}{n}") for n in range(20)))

    assert [ys(answers) for answers in found] == [fold_reference(XS)] * 20


async def test_steps_of_one_stream_given_to_a_feed_at_once_keep_their_order(one: Service, stream: str) -> None:
    async with AsyncClient(one.url) as client, client.model("fold").feed() as feed:
        answers = await asyncio.gather(*(feed.step(stream, [x]) for x in XS))

    assert ys(list(answers)) == fold_reference(XS)


async def test_a_feed_refuses_one_step_and_goes_on(one: Service, stream: str) -> None:
    async with AsyncClient(one.url) as client, client.model("fold").feed() as feed:
        refused, fine = await asyncio.gather(
            feed.step(f"{stream}a", [1, 2, 3]), feed.step(f"{stream}b", [7]), return_exceptions=True
        )
        after = await feed.step(f"{stream}a", [7])

    assert isinstance(refused, ClientError)
    assert (refused.code, refused.applied) == ("bad_input", "no")
    assert isinstance(fine, Answer)
    assert ys([fine, after]) == fold_reference([7]) * 2


async def test_a_step_too_large_for_a_feed_is_refused_and_the_feed_goes_on(one: Service, stream: str) -> None:
    async with AsyncClient(one.url) as client, client.model("fold").feed() as feed:
        assert await code_of(feed.step(stream, np.zeros(2**21, np.int64))) == "too_large"

        assert ys([await feed.step(stream, [7])]) == fold_reference([7])


async def test_a_feed_and_the_handles_of_its_model_know_the_same(one: Service, stream: str) -> None:
    async with AsyncClient(one.url) as client:
        model = client.model("fold")
        await model.stream(stream).prime([[x] for x in XS[:4]])
        async with model.feed() as feed:
            await feed.step(stream, [XS[4]])

        assert ys([await model.stream(stream).step([XS[5]])]) == fold_reference(XS)[5:6]


async def test_a_step_that_waits_when_its_feed_is_left_is_told(one: Service, stream: str) -> None:
    async with AsyncClient(one.url) as client:
        feed = client.model("fold").feed()
        async with feed:
            await feed.step(stream, [7])

        with pytest.raises(ClientError, match="was left") as caught:
            await feed.step(stream, [-3])

    assert (caught.value.code, caught.value.retry) == ("closed", "same")


# -------------------------------------------------------------------- what is lost on the way


class Wire:
    """A TCP proxy in front of a service; `cut_answer` cuts the connection in place of the next bytes that come back."""

    def __init__(self, service_port: int) -> None:
        self._service_port = service_port
        self._cut = threading.Event()
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
        """Take no more connections; those that are open stay."""
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
                    break
                near.sendall(data)
            near.shutdown(socket.SHUT_RDWR)  # closing alone would wait for the other thread


@pytest.fixture
def wire(one: Service) -> Iterator[Wire]:
    made = Wire(one.port)
    yield made
    made.close()


def test_an_answer_that_was_lost_is_given_again(wire: Wire, stream: str) -> None:
    with Client(wire.url) as client:
        handle = client.model("fold").stream(stream)
        handle.step([7])
        wire.cut_answer()

        again = handle.step([-3])

        assert (again.replayed, again.step, again.output[0]) == (True, 2, fold_reference([7, -3])[-1])
        assert handle.step([2**40]).output[0] == fold_reference(XS[:3])[-1]


def test_a_chunk_whose_answer_was_lost_is_applied_once(wire: Wire, stream: str) -> None:
    with Client(wire.url) as client:
        handle = client.model("fold").stream(stream)
        handle.step([7])
        wire.cut_answer()

        again = handle.steps([[x] for x in XS[1:]])

    assert (again.replayed, again.step) == (True, len(XS))
    assert again.output.ravel().tolist() == fold_reference(XS)[1:]


def test_many_streams_whose_answer_was_lost_move_once(wire: Wire, stream: str) -> None:
    with Client(wire.url) as client:
        model = client.model("fold")
        model.step_many({f"{stream}{n}": [7] for n in range(3)})
        wire.cut_answer()

        answers = model.step_many({f"{stream}{n}": [-3] for n in range(3)}).values()

    found = [(a.replayed, a.step, a.output[0]) for a in answers if isinstance(a, Answer)]
    assert found == [(True, 2, fold_reference([7, -3])[-1])] * 3


def test_a_reset_whose_answer_was_lost_is_done_once(wire: Wire, stream: str) -> None:
    with Client(wire.url) as client:
        handle = client.model("fold").stream(stream)
        handle.step([7])
        wire.cut_answer()

        again = handle.reset()

        assert (again.replayed, again.step) == (True, 0)
        assert ys([handle.step([x]) for x in XS]) == fold_reference(XS)


async def test_a_feed_sends_again_what_lost_its_answer(wire: Wire, stream: str) -> None:
    """At once: the time is too short to give up an attempt that is not told of the loss."""
    async with AsyncClient(wire.url, timeout=10) as client, client.model("fold").feed() as feed:
        await asyncio.gather(*(feed.step(f"{stream}{n}", [7]) for n in range(3)))
        wire.cut_answer()

        again = await asyncio.gather(*(feed.step(f"{stream}{n}", [-3]) for n in range(3)))

    assert ys(list(again)) == [fold_reference([7, -3])[-1]] * 3
    assert any(answer.replayed for answer in again)


def test_a_call_that_ran_out_of_time_can_be_made_again(wire: Wire, stream: str) -> None:
    with Client(wire.url, timeout=1) as client:
        handle = client.model("fold").stream(stream)
        handle.step([7])
        wire.cut_answer()
        wire.close()

        lost, refused = error_of(handle.step, [-3]), error_of(handle.step, [-3])
        wire.open()
        again = handle.step([-3])

    assert (lost.code, lost.applied, lost.retry) == ("no_answer", "unknown", "same")
    assert (refused.code, refused.applied, refused.retry) == ("no_answer", "no", "same")
    assert (again.replayed, again.step) == (True, 2)


async def test_a_step_on_a_feed_that_ran_out_of_time_can_be_made_again(wire: Wire, stream: str) -> None:
    async with AsyncClient(wire.url, timeout=1) as client, client.model("fold").feed() as feed:
        await feed.step(stream, [7])
        wire.cut_answer()
        wire.close()

        with pytest.raises(ClientError) as lost:
            await feed.step(stream, [-3])
        with pytest.raises(ClientError) as refused:
            await feed.step(stream, [-3])
        wire.open()
        again = await feed.step(stream, [-3])

    assert (lost.value.code, lost.value.applied) == ("no_answer", "unknown")
    assert (refused.value.code, refused.value.applied) == ("no_answer", "no")
    assert (again.replayed, again.step) == (True, 2)


def test_where_nobody_is_the_call_ends_in_time(stream: str) -> None:
    with Client(f"http://127.0.0.1:{free_port()}", timeout=0.3) as client:
        error = error_of(client.model("fold").stream(stream).step, [7])

    assert (error.code, error.applied, error.retry) == ("no_answer", "no", "same")


def steps_around(killed: threading.Event, under_way: threading.Event) -> Iterator[int]:
    """The numbers of the steps to take: until the service was killed, and 20 more."""
    n = 0
    while not killed.is_set():
        if n == 5:
            under_way.set()
        yield n
        n += 1
    yield from range(n, n + 20)


async def test_a_killed_service_loses_and_doubles_nothing_through_any_door(one: Service, stream: str) -> None:
    """Killed in the midst of steps and started again; the clients are not told and do not ask."""
    killed = threading.Event()
    doors = {door: threading.Event() for door in ("sync", "async", "feed")}

    def kill() -> None:
        for under_way in doors.values():
            under_way.wait(60)
        one.kill()
        killed.set()
        one.launch()

    def through_a_thread() -> list[Answer]:
        with Client(one.url) as client:
            handle = client.model("fold").stream(f"{stream}-sync")
            return [handle.step([n]) for n in steps_around(killed, doors["sync"])]

    async with AsyncClient(one.url) as client, client.model("fold").feed() as feed:

        async def through_asyncio(number: int) -> list[Answer]:
            handle = client.model("fold").stream(f"{stream}-async{number}")
            return [await handle.step([n]) for n in steps_around(killed, doors["async"])]

        async def through_the_feed(number: int) -> list[Answer]:
            name = f"{stream}-feed{number}"
            return [await feed.step(name, [n]) for n in steps_around(killed, doors["feed"])]

        killing = asyncio.create_task(asyncio.to_thread(kill))
        found = await asyncio.gather(
            asyncio.to_thread(through_a_thread),
            *(through_asyncio(number) for number in range(4)),
            *(through_the_feed(number) for number in range(4)),
        )
        await killing

    assert [ys(answers) for answers in found] == [fold_reference(range(len(answers))) for answers in found]
    assert [answers[-1].step for answers in found] == [len(answers) for answers in found]


@pytest.mark.parametrize("end", [Service.kill, Service.stop])
async def test_a_restart_between_two_steps_is_not_noticed(one: Service, client: Client, stream: str, end: Any) -> None:
    handle = client.model("fold").stream(stream)
    async with AsyncClient(one.url) as aclient, aclient.model("fold").feed() as feed:
        before = [handle.step([x]) for x in XS[:4]], [await feed.step(f"{stream}-feed", [x]) for x in XS[:4]]
        end(one)
        one.launch()
        after = [handle.step([x]) for x in XS[4:]], [await feed.step(f"{stream}-feed", [x]) for x in XS[4:]]

    assert [ys(early + late) for early, late in zip(before, after, strict=True)] == [fold_reference(XS)] * 2


# -------------------------------------------------------------------- when and how it is sent again


def problem(code: str, **more: Any) -> bytes:
    return problem_body(ServiceError(code, "Found this.", **more))


def exchanges(now: Iterator[float] | None = None, jitter: float = 1.0) -> ModelExchanges:
    return ModelExchanges("m", 60, clock=lambda: next(now) if now else 0.0, jitter=lambda: jitter)


def begin(exchange: Exchange[Any], *got: Reply | Lost) -> Ask:
    """Carry an exchange through these replies, and return what it asks then."""
    ask = next(exchange)
    for reply in got:
        ask = exchange.send(reply)
    return ask


LOST = Lost("The line went dead.", sent=True)
REFUSED = Lost("Nobody listens.", sent=False)
BUSY = Reply(503, problem("overloaded"), JSON)
DESCRIBED = Reply(200, encode({"inputs": [{"name": "x", "dtype": "int64"}]}, MSGPACK), MSGPACK)
NONE_THERE = Reply(404, problem("stream_not_found"), JSON)
CHANGED = Reply(409, problem("state_changed"), JSON)


def test_pauses_grow_up_to_two_seconds() -> None:
    exchange = exchanges().status(Place("s"))
    begin(exchange)

    waits = [exchange.send(LOST).wait for _ in range(8)]

    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])


def test_pauses_are_random() -> None:
    assert begin(exchanges(jitter=0.5).status(Place("s")), LOST).wait == pytest.approx(0.025)


def test_a_pause_is_never_shorter_than_the_service_asks_for() -> None:
    asked = Reply(503, problem("overloaded"), JSON, retry_after=7.0)

    assert begin(exchanges(jitter=0.0).status(Place("s")), asked).wait == 7.0


def test_a_pause_beyond_the_time_left_is_not_begun() -> None:
    asked = Reply(503, problem("overloaded"), JSON, retry_after=61.0)

    error = error_of(begin, exchanges().status(Place("s")), asked)

    assert (error.code, error.retry_after) == ("overloaded", 61.0)


@pytest.mark.parametrize(("timeout", "attempt"), [(5, 5), (60, 15)])
def test_an_attempt_leaves_time_for_others(timeout: float, attempt: float) -> None:
    assert begin(ModelExchanges("m", timeout, clock=lambda: 0.0).status(Place("s"))).timeout == attempt


def test_a_retry_is_the_same_request() -> None:
    exchange = exchanges().move(Place("s", 4, "history", known=True), [7])
    first = begin(exchange, DESCRIBED)

    again = exchange.send(LOST)

    assert (again.method, again.path, again.document) == (first.method, first.path, first.document)
    assert first.document is not None
    assert (first.document["seq"], first.document["after"]) == (5, "history")


@pytest.mark.parametrize(
    ("before", "applied"),
    [([], "no"), ([BUSY], "no"), ([REFUSED], "no"), ([LOST], "unknown"), ([LOST, BUSY], "unknown")],
)
def test_a_refusal_tells_of_all_attempts(before: list[Reply | Lost], applied: str) -> None:
    """The state may have changed by the very step whose answer was lost."""
    error = error_of(begin, exchanges().move(Place("s"), [7]), DESCRIBED, NONE_THERE, *before, CHANGED)

    assert (error.code, error.applied) == ("state_changed", applied)


def test_of_many_streams_only_those_that_failed_are_sent_again() -> None:
    places = [Place(name, known=True) for name in "abc"]
    exchange = exchanges().move_many(places, {name: [7] for name in "abc"})
    begin(exchange, DESCRIBED)

    again = exchange.send(columns({"1": "overloaded", "2": "state_changed"}))

    assert again.document is not None
    assert again.document["streams"] == ["b"]
    assert again.wait > 0


def test_what_was_answered_is_kept_when_the_rest_gets_no_answer() -> None:
    exchange = exchanges(now=iter([0, 0, 0, 0, 0, 99])).move_many(
        [Place(n, known=True) for n in "abc"], {name: [7] for name in "abc"}
    )
    begin(exchange, DESCRIBED, columns({"1": "overloaded", "2": "state_changed"}))

    with pytest.raises(StopIteration) as end:
        exchange.send(LOST)

    found = {name: getattr(result, "code", "answered") for name, result in end.value.value.items()}
    assert found == {"a": "answered", "b": "no_answer", "c": "state_changed"}


def columns(errors: dict[str, str]) -> Reply:
    """An answer for three streams, of which some failed."""
    document = {
        "outputs": {"y": {"d": "int64", "s": [3, 1], "b": bytes(24)}},
        "step": [None if str(i) in errors else 1 for i in range(3)],
        "state_id": [None if str(i) in errors else "id" for i in range(3)],
        "errors": {i: json.loads(problem(code)) for i, code in errors.items()},
    }
    return Reply(200, encode(document, MSGPACK), MSGPACK)


@pytest.mark.parametrize(("status", "retry"), [(502, "same"), (504, "same"), (404, "never"), (301, "never")])
def test_the_page_of_a_proxy_is_not_taken_for_an_answer(status: int, retry: str) -> None:
    page = Reply(status, b"<html>Bad Gateway</html>", JSON)

    error = error_of(
        begin, ModelExchanges("m", 0, clock=lambda: 0.0).move(Place("s", known=True), [7]), DESCRIBED, page
    )

    assert (error.code, error.applied, error.retry) == ("unreadable_answer", "unknown", retry)
    assert "Bad Gateway" in str(error)


# -------------------------------------------------------------------- the rest


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "x" * 129])
def test_a_stream_id_that_no_stream_has_is_refused_at_once(client: Client, name: str) -> None:
    assert error_of(client.model("fold").stream, name).code == "bad_request"


@pytest.mark.parametrize("url", ["", "localhost:8000", "redis://localhost", "http://"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    assert error_of(Client, url).code == "bad_url"


def test_a_missing_model_is_not_found(client: Client, stream: str) -> None:
    assert error_of(client.model("other").stream(stream).step, [7]).code == "model_not_found"
    assert error_of(client.model, "../secret").code == "bad_request"


def test_a_service_that_demands_preconditions_gets_them(shared_redis: Server, tmp_path: Path, stream: str) -> None:
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
    """Write a keys file in one move; each key is its own name."""
    keys = [{"id": k, "sha256": sha256(k.encode()).hexdigest(), "tenant": "a", "scopes": scopes[k]} for k in scopes]
    partial = file.with_suffix(".new")
    partial.write_text(json.dumps({"keys": keys}))
    return partial.replace(file)


async def test_a_key_opens_the_doors_that_it_has_the_scopes_for(
    shared_redis: Server, tmp_path: Path, stream: str
) -> None:
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


async def test_a_feed_whose_key_is_withdrawn_is_told(shared_redis: Server, tmp_path: Path, stream: str) -> None:
    """This refusal names no step, as the service no longer reads what it is sent."""
    write_model(tmp_path / "models", "fold", fold)
    keys = write_keys(tmp_path / "keys.json", mine=["step", "read"], other=[])
    with running_service(shared_redis.url, tmp_path / "models", api_keys_file=keys) as keyed:
        url = f"http://127.0.0.1:{keyed.port}"
        async with AsyncClient(url, "mine") as client, client.model("fold").feed() as feed:

            async def go_on() -> None:
                while True:
                    await feed.step(stream, [7])

            await feed.step(stream, [7])
            write_keys(keys, other=[])

            with pytest.raises(ClientError) as caught:
                await go_on()

    assert (caught.value.code, caught.value.applied) == ("unauthenticated", "no")


async def code_of(call: Awaitable[Any]) -> str:
    with pytest.raises(ClientError) as caught:
        await call
    return caught.value.code


def test_the_client_loads_nothing_of_the_server() -> None:
    heavy = "fastapi starlette uvicorn redis onnxruntime prometheus_client typer"
    code = f"import service.client, sys; print([name for name in '{heavy}'.split() if name in sys.modules])"

    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_examples_of_the_page_print_what_it_shows(one: Service) -> None:
    shown = "".join(re.findall(r"```text\n(.*?)```", DOCS, re.S))
    docs = DOCS if find_spec("pandas") else re.sub(r"<!-- pandas -->.*?<!-- /pandas -->", "", DOCS, flags=re.S)
    code = "".join(re.findall(r"```python\n(.*?)```", docs, re.S))
    assert ":8000" in code

    done = subprocess.run([sys.executable, "-c", code.replace(":8000", f":{one.port}")], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout == shown
