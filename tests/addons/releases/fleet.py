"""Two replicas on one store that serve versions of one model, and what clients see of a release."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection

from tests.api.running import Service, running_service
from tests.graphs import Build, fold, fold_reference, write_model

MODEL = "fold"
OLD_FACTOR, NEW_FACTOR = 1_000_003, 31

over_both = pytest.mark.parametrize("releases", ["http", "feed"], indirect=True)


class Fleet:
    """Two replicas on one store.

    Attributes:
        replicas: The running services.
        model: The model's name.
        by_feed: Whether timesteps are sent over each replica's feed of the model; else by POST.
    """

    def __init__(self, replicas: Sequence[Service], model: str = MODEL, *, by_feed: bool = False) -> None:
        self.replicas = list(replicas)
        self.model = model
        self.by_feed = by_feed
        self._turn = 0
        self._opening = threading.Lock()
        self._feeds: dict[int, tuple[ClientConnection, threading.Lock]] = {}

    @property
    def replica(self) -> Service:
        """The next replica, in turn."""
        self._turn += 1
        return self.replicas[self._turn % len(self.replicas)]

    def release(self, method: str = "GET", what: str = "", **body: Any) -> Any:
        """Send a request for the release, and return its document."""
        path = f"/v1/models/{self.model}/release{what}"
        response = self.replica.http.request(method, path, json=body if method != "GET" else None)
        assert response.is_success, response.text
        return response.json()

    def put(self, **body: Any) -> Any:
        """Change the release, and wait until both replicas have it."""
        return self._known(self.release("PUT", **body))

    def end(self, how: str, **body: Any) -> Any:
        """Promote or abort, and wait until both replicas have it."""
        return self._known(self.release("POST", f"/{how}", **body))

    def _known(self, document: Any) -> Any:
        self.wait_for(document["revision"])
        return document

    def wait_for(self, revision: int) -> None:
        """Wait until all replicas have a revision of the release."""

        def have_it() -> bool:
            known = [
                replica.app.state.context.engine.placing.documents.current(self.model) for replica in self.replicas
            ]
            return all(one is not None and one.revision >= revision for one in known)

        wait_until(have_it)

    def step(self, stream: str, inputs: Any, **more: Any) -> Any:
        """Step a stream on the next replica, and return the response."""
        return self.send(self.replica, stream, "step", {"inputs": inputs, **more})

    def chunk(self, stream: str, inputs: Any, **more: Any) -> Any:
        """Step a stream by a chunk on the next replica, and return the response."""
        return self.send(self.replica, stream, "steps", {"inputs": inputs, **more})

    def send(self, service: Service, stream: str, what: str, body: dict[str, Any]) -> Any:
        """Send a step or a chunk to a replica, and return the response."""
        if self.by_feed:
            answer = self._exchange(service, {"stream": stream, **body, **({"chunk": True} if what == "steps" else {})})
            assert "error" not in answer, answer
            return answer
        response = service.http.post(service.path(self.model, stream, what), json=body)
        assert response.is_success, response.text
        return response.json()

    def close(self) -> None:
        """Close the feeds."""
        for feed, _ in self._feeds.values():
            feed.close()

    def _exchange(self, service: Service, message: dict[str, Any]) -> Any:
        """Send one message over a replica's feed, and return its response; threads take turns."""
        with self._opening:
            if service.port not in self._feeds:
                self._feeds[service.port] = service.feed(self.model), threading.Lock()
        feed, turn = self._feeds[service.port]
        with turn:
            feed.send(json.dumps(message))
            return json.loads(feed.recv(30))

    def bulk(self, streams: Sequence[str], inputs: Sequence[Any], **more: Any) -> Any:
        """Step streams by columns on the next replica."""
        body, service = {"streams": list(streams), "inputs": list(inputs), **more}, self.replica
        if self.by_feed:
            return self._exchange(service, body)
        response = service.http.post(f"/v1/models/{self.model}/step", json=body)
        assert response.is_success, response.text
        return response.json()


def wait_until(is_true: Callable[[], bool], within_s: float = 60.0) -> None:
    """Wait for a fact."""
    deadline, pause = time.monotonic() + within_s, threading.Event()
    while not is_true():
        assert time.monotonic() < deadline, "it did not become true in time"
        pause.wait(0.02)


@contextlib.contextmanager
def fleet(
    url: str, folder: Path, *versions: Build, replicas: int = 2, by_feed: bool = False, **settings: Any
) -> Iterator[Fleet]:
    """Run replicas that serve the versions 1, 2, .. of a model; version 1 is current."""
    for number, build in enumerate(versions, 1):
        write_model(folder, MODEL, build, version=number)
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(running_service(url, folder, **settings)) for _ in range(replicas)]
        found = Fleet(running, by_feed=by_feed)
        stack.callback(found.close)
        found.put(current=1)
        yield found


def two_folds(url: str, folder: Path, **settings: Any) -> contextlib.AbstractContextManager[Fleet]:
    """Run two replicas with two versions of `fold` that differ in their factor."""
    return fleet(url, folder, lambda: fold(OLD_FACTOR), lambda: fold(NEW_FACTOR), **settings)


def folded(xs: Sequence[int], *, start: int = 0, factor: int = OLD_FACTOR) -> list[int]:
    """Return the predictions of a version."""
    return fold_reference(xs, start=start, factor=factor)
