"""The client brings back what a store has lost, and does all else that a stream can do."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.client import Answer, AsyncClient, Client, ClientError, Event, Gap, ResendBar, State
from tests.api.running import Service, models, running
from tests.graphs import fold, fold_reference, lstm, scaled
from tests.processes import service as process
from tests.servers import Server, server

XS = [[x] for x in range(40)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("r")) as one:
        yield one


@pytest.fixture(scope="module")
def one(store: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = models(tmp_path_factory.mktemp("models"), fold, lstm, scaled)
    with running(store.url, folder, history=["fold=100"]) as made:
        yield made


@pytest.fixture
def url(one: Service) -> str:
    return f"http://127.0.0.1:{one.port}"


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)


class Past:
    """A stream's record in the store, as it was."""

    def __init__(self, store: Server, stream: str) -> None:
        self._store = store
        self._key = f"swl:1:{{default/fold/{stream}}}"
        with store.client() as client:
            self._record: Any = client.get(self._key)

    def come_back(self) -> None:
        """Roll the store back, as a failover to a replica that was behind does."""
        with self._store.client() as client:
            client.set(self._key, self._record)


def ys(answers: list[Answer]) -> list[int]:
    return [int(answer.output[-1]) for answer in answers]


# -------------------------------------------------------------------- what the store lost


def test_a_store_that_fell_back_is_brought_forward_unseen(store: Server, url: str, stream: str) -> None:
    told: list[tuple[str, int, int]] = []
    with Client(url, on_resend=lambda *news: told.append(news)) as client:
        handle = client.model("fold").stream(stream)
        answers = [handle.step(x) for x in XS[:10]]
        past = Past(store, stream)
        answers += [handle.step(x) for x in XS[10:20]]
        past.come_back()
        answers += [handle.step(x) for x in XS[20:]]

    assert ys(answers) == fold_reference(range(40))
    assert told == [(stream, done, 10) for done in range(11)]


def test_chunks_and_bulk_steps_are_brought_forward_too(store: Server, url: str, stream: str) -> None:
    with Client(url) as client:
        model = client.model("fold")
        handle = model.stream(stream)
        handle.steps(XS[:5])
        past = Past(store, stream)
        handle.steps(XS[5:10], returns="last")
        model.step_many({stream: XS[10]})
        past.come_back()
        [answer] = model.step_many({stream: XS[11]}).values()

    assert isinstance(answer, Answer)
    assert ys([answer]) == fold_reference(range(12))[-1:]


async def test_a_feed_brings_its_streams_forward(store: Server, url: str, stream: str) -> None:
    async with AsyncClient(url) as client, client.model("fold").feed() as feed:
        answers = [await feed.step(stream, x) for x in XS[:5]]
        past = Past(store, stream)
        answers += [await feed.step(stream, x) for x in XS[5:10]]
        past.come_back()
        answers += [await feed.step(stream, x) for x in XS[10:]]

    assert ys(answers) == fold_reference(range(40))


def test_a_stream_that_somebody_reset_is_left_alone(url: str, stream: str) -> None:
    with Client(url) as client, Client(url) as other:
        handle = client.model("fold").stream(stream)
        for x in XS[:5]:
            handle.step(x)
        other.model("fold").stream(stream).reset()
        with pytest.raises(ClientError) as caught:
            handle.step(XS[5])

        assert (caught.value.code, handle.status().step) == ("state_changed", 0)


def test_a_deleted_stream_is_not_brought_back(url: str, stream: str) -> None:
    with Client(url) as client, Client(url) as other:
        handle = client.model("fold").stream(stream)
        for x in XS[:5]:
            handle.step(x)
        other.model("fold").stream(stream).delete()
        with pytest.raises(ClientError, match="no such stream"):
            handle.step(XS[5])


@pytest.mark.parametrize("keep_bytes", [0, 1000])
def test_what_is_not_kept_is_the_caller_s(store: Server, url: str, stream: str, keep_bytes: int) -> None:
    with Client(url, keep_bytes=keep_bytes) as client:
        handle = client.model("fold").stream(stream)
        handle.step(XS[0])
        past = Past(store, stream)
        for x in XS[1:10]:
            handle.step(x)
        past.come_back()
        with pytest.raises(ClientError) as caught:
            handle.step(XS[10])

    assert (caught.value.code, caught.value.retry, caught.value.expected) == ("state_changed", "resend_from", 2)


def test_what_is_sent_again_can_be_looked_at(store: Server, url: str, stream: str, capsys: Any) -> None:
    with ResendBar() as bar, Client(url, on_resend=bar) as client:
        handle = client.model("fold").stream(stream)
        handle.step(XS[0])
        past = Past(store, stream)
        handle.step(XS[1])
        past.come_back()
        handle.step(XS[2])

    assert stream in capsys.readouterr().err


# -------------------------------------------------------------------- looking ahead, copies, states


def test_a_peek_is_what_the_step_then_is(url: str, stream: str) -> None:
    with Client(url) as client:
        handle = client.model("fold").stream(stream)
        handle.step(XS[0])
        peeked, ahead = handle.peek(XS[1]), handle.peek(XS[1:3], chunk=True)
        stepped = handle.step(XS[1])

    assert (ys([peeked]), peeked.step) == (ys([stepped]), stepped.step)
    assert ahead.output.ravel().tolist() == fold_reference(range(3))[1:]


def test_a_rollout_looks_ahead_and_goes_there(url: str, stream: str) -> None:
    with Client(url) as client:
        handle = client.model("fold").stream(stream)
        handle.step(XS[0])
        ahead = handle.rollout(3, feedback={"x": "y"})
        gone = handle.rollout(3, commit=True, feedback={"x": "y"})
        by_hand = fold_reference([0])
        for _ in range(3):
            by_hand = fold_reference([0, *by_hand])

        assert ahead.output.ravel().tolist() == gone.output.ravel().tolist() == by_hand[1:]
        assert (ahead.step, gone.step, handle.status().step) == (4, 4, 4)
        assert ahead.next["x"].tolist() == ahead.output.tolist()
        assert handle.step(XS[1]).step == 5


def test_a_fork_goes_its_own_way(url: str, stream: str) -> None:
    with Client(url) as client:
        handle = client.model("fold").stream(stream)
        for x in XS[:3]:
            handle.step(x)
        other = handle.fork(f"{stream}-other")

        assert ys([other.step([7]), handle.step([8])]) == [fold_reference([0, 1, 2, x])[-1] for x in (7, 8)]


def test_a_snapshot_is_gone_back_to(url: str, stream: str) -> None:
    with Client(url) as client:
        handle = client.model("fold").stream(stream)
        handle.step([1])
        handle.take_snapshot("first")
        once = ys([handle.step(x) for x in XS[:5]])

        assert [(one.name, one.step) for one in handle.snapshots()] == [("first", 1)]
        assert handle.reset(to="first").step == 1
        assert ys([handle.step(x) for x in XS[:5]]) == once
        handle.forget_snapshot("first")
        assert handle.snapshots() == []


def test_a_state_goes_out_and_in(url: str, stream: str) -> None:
    with Client(url) as client:
        handle, other = (client.model("lstm").stream(name) for name in (stream, f"{stream}-moved"))
        rows = np.random.default_rng(0).normal(size=(6, 4))
        handle.prime(rows[:4])
        state = handle.state()
        assert other.put_state(state).step == 4
        assert other.steps(rows[4:]).output.tolist() == handle.steps(rows[4:]).output.tolist()
        with pytest.raises(ClientError, match="h"):
            other.put_state(State({"h": state.states["h"]}))


async def test_all_of_it_is_there_to_be_awaited(url: str, stream: str) -> None:
    async with AsyncClient(url) as client:
        handle = client.model("fold").stream(stream)
        answers = [answer async for answer in handle.replay(XS[:3])]
        assert ys([await handle.peek(XS[3])]) == fold_reference(range(4))[-1:]
        other = await handle.fork(f"{stream}-other")
        await other.take_snapshot("s")
        await other.step([9])
        assert [one.name for one in await other.snapshots()] == ["s"]
        assert (await other.reset(to="s")).step == 3
        await other.forget_snapshot("s")
        assert (await other.put_state(await handle.state())).step == 3
        assert (await other.rollout(2, [1], feedback={"x": "y"})).step == 5
        watch = handle.watch(since=0)
        seen = [(await anext(watch)) for _ in range(3)]

    assert ys(answers) == [int(one.output[0]) for one in seen if isinstance(one, Event)] == fold_reference(range(3))


# -------------------------------------------------------------------- watching, replaying


def test_a_watch_tells_what_others_commit(url: str, stream: str) -> None:
    with Client(url) as client, Client(url) as other:
        watch = client.model("fold").stream(stream).watch(since=0, inputs=True)
        sending = threading.Thread(target=lambda: list(other.model("fold").stream(stream).replay(XS)))
        sending.start()
        seen = list(islice(watch, 40))
        sending.join()
        watch.close()  # type: ignore[attr-defined]  # it is a generator

    events = [one for one in seen if isinstance(one, Event)]
    assert ys(list(events)) == fold_reference(range(40))
    assert [one.inputs["x"].tolist() for one in events] == XS


def test_a_watch_that_lost_its_service_goes_on(tmp_path: Path, short_path: Path) -> None:
    folder = models(tmp_path, fold)
    with process(folder, short_path, "--history", "100") as live, Client(live.url) as client:
        handle = client.model("fold").stream("a")
        watch = handle.watch(since=0)
        handle.step(XS[0])
        seen = [next(watch)]
        live.kill()
        live.start()
        for x in XS[1:5]:
            handle.step(x)
        seen += islice(watch, 4)
        watch.close()  # type: ignore[attr-defined]

    assert [one.step for one in seen if not isinstance(one, Gap)] == [1, 2, 3, 4, 5]


def test_a_watch_that_may_not_is_told(url: str) -> None:
    with Client(url) as client, pytest.raises(ClientError, match="absent"):
        next(client.model("absent").watch())


def test_a_table_is_replayed_with_a_bar(url: str, stream: str, capsys: Any) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
    rows = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    frame = pandas.DataFrame(rows[:, ::-1], columns=list("dcba"))
    with Client(url) as client:
        model = client.model("lstm")
        answers = list(model.stream(stream).replay(frame, columns=list("abcd"), progress=True))
        whole = model.stream(f"{stream}-whole").steps(rows)

    assert np.allclose([answer.output for answer in answers], whole.output, atol=1e-6)
    assert "100%" in capsys.readouterr().err


def test_anything_is_replayed(url: str, stream: str) -> None:
    with Client(url) as client:
        answers = client.model("fold").stream(stream).replay(x for x in XS)

        assert ys(list(answers)) == fold_reference(range(40))
