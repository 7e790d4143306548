"""Two replicas on one store that serve versions of one model, and what clients see of a release."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.api.running import Service, running_service
from tests.graphs import Build, fold, fold_reference, write_model

MODEL = "fold"
OLD_FACTOR, NEW_FACTOR = 1_000_003, 31


class Fleet:
    """Two replicas on one store.

    Attributes:
        replicas: The running services.
        model: The model's name.
    """

    def __init__(self, replicas: Sequence[Service], model: str = MODEL) -> None:
        self.replicas = list(replicas)
        self.model = model
        self._turn = 0

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
            known = [replica.app.state.context.engine.releases.current(self.model) for replica in self.replicas]
            return all(one is not None and one.revision >= revision for one in known)

        wait_until(have_it)

    def step(self, stream: str, inputs: Any, **more: Any) -> Any:
        """Step a stream on the next replica, and return the response."""
        response = self.replica.step(self.model, stream, inputs, **more)
        assert response.is_success, response.text
        return response.json()

    def chunk(self, stream: str, inputs: Any, **more: Any) -> Any:
        """Step a stream by a chunk on the next replica, and return the response."""
        service = self.replica
        response = service.http.post(service.path(self.model, stream, "steps"), json={"inputs": inputs, **more})
        assert response.is_success, response.text
        return response.json()

    def bulk(self, streams: Sequence[str], inputs: Sequence[Any], **more: Any) -> Any:
        """Step streams by columns on the next replica."""
        body = {"streams": list(streams), "inputs": list(inputs), **more}
        response = self.replica.http.post(f"/v1/models/{self.model}/step", json=body)
        assert response.is_success, response.text
        return response.json()


def wait_until(is_true: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait for a fact."""
    deadline, pause = time.monotonic() + within_s, threading.Event()
    while not is_true():
        assert time.monotonic() < deadline, "it did not become true in time"
        pause.wait(0.02)


@contextlib.contextmanager
def fleet(url: str, folder: Path, *versions: Build, replicas: int = 2, **settings: Any) -> Iterator[Fleet]:
    """Run replicas that serve the versions 1, 2, .. of a model; version 1 is current."""
    for number, build in enumerate(versions, 1):
        write_model(folder, MODEL, build, version=number)
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(running_service(url, folder, **settings)) for _ in range(replicas)]
        found = Fleet(running)
        found.put(current=1)
        yield found


def two_folds(url: str, folder: Path, **settings: Any) -> contextlib.AbstractContextManager[Fleet]:
    """Run two replicas with two versions of `fold` that differ in their factor."""
    return fleet(url, folder, lambda: fold(OLD_FACTOR), lambda: fold(NEW_FACTOR), **settings)


def folded(xs: Sequence[int], *, start: int = 0, factor: int = OLD_FACTOR) -> list[int]:
    """Return the predictions of a version."""
    return fold_reference(xs, start=start, factor=factor)
