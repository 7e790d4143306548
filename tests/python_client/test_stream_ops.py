"""The client restores what a store has lost, and supports every other operation on a stream."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import redis

from stepwell_client import AsyncClient, Client, ClientError, Event, Gap, State, StepResult
from tests.api.running import running_service
from tests.graphs import fold, fold_reference, lstm, scaled, write_models
from tests.processes import service_process as process
from tests.python_client.transports import TRANSPORTS, engine_in_process
from tests.servers import server

XS = [[x] for x in range(40)]


class Store(Protocol):
    """The store of a service, for tests that change what it has."""

    def client(self) -> redis.Redis: ...


@dataclass(frozen=True)
class PrivateStore:
    """The store of an engine in this process."""

    url: str

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)


@pytest.fixture(scope="module", params=TRANSPORTS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Store]]:
    """The address and the store of a service, by each transport."""
    folder = write_models(tmp_path_factory.mktemp("models"), fold, lstm, scaled)
    if request.param == "http":
        with (
            server(tmp_path_factory.mktemp("r")) as store,
            running_service(store.url, folder, history=["fold=100"]) as made,
        ):
            yield f"http://127.0.0.1:{made.port}", store
    else:
        with engine_in_process(folder, history="fold=100") as engine:
            assert engine._engine is not None
            yield engine.url, PrivateStore(engine._engine.store_url)


@pytest.fixture
def url(served: tuple[str, Store]) -> str:
    return served[0]


@pytest.fixture
def store(served: tuple[str, Store]) -> Store:
    return served[1]


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)


class SavedRecord:
    """The stored record of a stream at an earlier moment."""

    def __init__(self, store: Store, stream: str) -> None:
        self._store = store
        self._key = f"swl:1:{{default/fold/{stream}}}"
        with store.client() as client:
            self._record: Any = client.get(self._key)

    def restore(self) -> None:
        """Roll the store back, as a failover to a stale replica does."""
        with self._store.client() as client:
            client.set(self._key, self._record)


def ys(answers: list[StepResult]) -> list[int]:
    return [int(answer.output[-1]) for answer in answers]


# -------------------------------------------------------------------- lost by the store


def test_steps_that_the_store_lost_are_sent_again_transparently(store: Store, url: str, stream: str) -> None:
    resent: list[tuple[str, int, int]] = []
    with Client(url, on_resend=lambda *news: resent.append(news)) as client:
        handle = client.model("fold").stream(stream)
        answers = [handle.step(x) for x in XS[:10]]
        past = SavedRecord(store, stream)
        answers += [handle.step(x) for x in XS[10:20]]
        past.restore()
        answers += [handle.step(x) for x in XS[20:]]

    assert ys(answers) == fold_reference(range(40))
    assert resent == [(stream, done, 10) for done in range(11)]


def test_chunks_and_bulk_steps_are_sent_again_too(store: Store, url: str, stream: str) -> None:
    with Client(url) as client:
        model = client.model("fold")
        handle = model.stream(stream)
        handle.steps(XS[:5])
        past = SavedRecord(store, stream)
        handle.steps(XS[5:10], returns="last")
        model.step_many({stream: XS[10]})
        past.restore()
        [answer] = model.step_many({stream: XS[11]}).values()

    assert isinstance(answer, StepResult)
    assert ys([answer]) == fold_reference(range(12))[-1:]


async def test_a_feed_sends_lost_steps_again(store: Store, url: str, stream: str) -> None:
    async with AsyncClient(url) as client, client.model("fold").feed() as feed:
        answers = [await feed.step(stream, x) for x in XS[:5]]
        past = SavedRecord(store, stream)
        answers += [await feed.step(stream, x) for x in XS[5:10]]
        past.restore()
        answers += [await feed.step(stream, x) for x in XS[10:]]

    assert ys(answers) == fold_reference(range(40))


def test_a_stream_that_was_reset_by_another_client_is_left_alone(url: str, stream: str) -> None:
    with Client(url) as client, Client(url) as other:
        handle = client.model("fold").stream(stream)
        for x in XS[:5]:
            handle.step(x)
        other.model("fold").stream(stream).reset()
        with pytest.raises(ClientError) as caught:
            handle.step(XS[5])

        assert (caught.value.code, handle.status().step) == ("state_changed", 0)


def test_a_deleted_stream_is_not_restored(url: str, stream: str) -> None:
    with Client(url) as client, Client(url) as other:
        handle = client.model("fold").stream(stream)
        for x in XS[:5]:
            handle.step(x)
        other.model("fold").stream(stream).delete()
        with pytest.raises(ClientError, match="does not exist"):
            handle.step(XS[5])


@pytest.mark.parametrize("keep_bytes", [0, 1000])
def test_steps_that_are_no_longer_buffered_are_the_callers_to_resend(
    store: Store, url: str, stream: str, keep_bytes: int
) -> None:
    with Client(url, keep_bytes=keep_bytes) as client:
        handle = client.model("fold").stream(stream)
        handle.step(XS[0])
        past = SavedRecord(store, stream)
        for x in XS[1:10]:
            handle.step(x)
        past.restore()
        with pytest.raises(ClientError) as caught:
            handle.step(XS[10])

    assert (caught.value.code, caught.value.retry, caught.value.expected) == ("state_changed", "resend_from", 2)


# -------------------------------------------------------------------- peeks, rollouts, copies, states


def test_a_rollout_can_be_a_forecast_or_be_committed(url: str, stream: str) -> None:
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


def test_a_stream_can_be_reset_to_a_snapshot(url: str, stream: str) -> None:
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


def test_a_name_that_no_snapshot_can_have_is_rejected_and_changes_nothing(url: str, stream: str) -> None:
    with Client(url) as client:
        handle = client.model("fold").stream(stream)
        step = handle.step([1]).step
        for name in ("..", f"../../{stream}", "a/b", "a?b", "", "a b", "x" * 65):
            for call in (handle.forget_snapshot, handle.take_snapshot):
                with pytest.raises(ClientError, match="snapshot's name is") as caught:
                    call(name)
                assert (caught.value.code, caught.value.applied) == ("bad_request", "no")

        assert handle.status().step == step
        assert handle.snapshots() == []


def test_a_state_can_be_exported_and_imported(url: str, stream: str) -> None:
    with Client(url) as client:
        handle, other = (client.model("lstm").stream(name) for name in (stream, f"{stream}-moved"))
        rows = np.random.default_rng(0).normal(size=(6, 4))
        handle.prime(rows[:4])
        state = handle.state()
        assert other.put_state(state).step == 4
        assert other.steps(rows[4:]).output.tolist() == handle.steps(rows[4:]).output.tolist()
        with pytest.raises(ClientError, match="h"):
            other.put_state(State({"h": state.states["h"]}))


async def test_the_async_client_replays_and_watches(url: str, stream: str) -> None:
    async with AsyncClient(url) as client:
        handle = client.model("fold").stream(stream)
        answers = [answer async for answer in handle.replay(XS[:3])]
        watch = handle.watch(since=0)
        seen = [(await anext(watch)) for _ in range(3)]

    assert ys(answers) == [int(one.output[0]) for one in seen if isinstance(one, Event)] == fold_reference(range(3))


# -------------------------------------------------------------------- watch, replay


def test_a_watch_receives_the_commits_of_others(url: str, stream: str) -> None:
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


def test_a_watch_reconnects_after_a_restart(tmp_path: Path, short_path: Path) -> None:
    folder = write_models(tmp_path, fold)
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


def test_a_watch_without_permission_gets_an_error(url: str) -> None:
    with Client(url) as client, pytest.raises(ClientError, match="absent"):
        next(client.model("absent").watch())


def test_a_table_is_replayed_with_a_progress_bar(url: str, stream: str, capsys: Any) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
    rows = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    frame = pandas.DataFrame(rows[:, ::-1], columns=list("dcba"))
    with Client(url) as client:
        model = client.model("lstm")
        answers = list(model.stream(stream).replay(frame, columns=list("abcd"), progress=True))
        whole = model.stream(f"{stream}-whole").steps(rows)

    assert np.allclose([answer.output for answer in answers], whole.output, atol=1e-6)
    assert "100%" in capsys.readouterr().err


def test_any_iterable_can_be_replayed(url: str, stream: str) -> None:
    with Client(url) as client:
        answers = client.model("fold").stream(stream).replay(x for x in XS)

        assert ys(list(answers)) == fold_reference(range(40))
