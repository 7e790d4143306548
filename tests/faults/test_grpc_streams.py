"""Kills and restarts of the service under streams of gRPC: with `step` and a key, each timestep is applied once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.addons.grpc_api.client import GrpcClient, grpc, infer_request, integer, y_of
from tests.addons.grpc_api.conftest import GrpcService
from tests.graphs import fold, fold_reference, write_models
from tests.servers import Server

AHEAD = 32  # timesteps of a sequence that are on their way
BETWEEN = 40  # timesteps of each sequence between two restarts
RETRIED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}


class SequenceSender(threading.Thread):
    """Sends one sequence over `ModelStreamInfer`, and after a failure everything that has no response, again.

    Attributes:
        predictions: The prediction of each timestep that has a response.
        failures: How many calls have failed.
        length: Timesteps of the whole sequence; None: it does not end yet.
    """

    def __init__(self, port: int, sequence: str) -> None:
        super().__init__(daemon=True)
        self.predictions: list[int] = []
        self.failures = 0
        self.length: int | None = None
        self.error: Exception | None = None
        self._port = port
        self._sequence = sequence
        self._has_room = threading.Semaphore(AHEAD)
        self._is_over = False

    def run(self) -> None:
        try:
            while self.length is None or len(self.predictions) < self.length:
                self._call()
        except Exception as exc:  # noqa: BLE001 - raised in the test's thread
            self.error = exc

    def _call(self) -> None:
        """Send what is missing over one call, until it ends."""
        self._has_room, self._is_over = threading.Semaphore(AHEAD), False
        client = GrpcClient(self._port)
        try:
            for response in client.stream(self._requests(len(self.predictions), self._has_room)):
                message = response.error_message
                if any(words in message for words in ("applied: unknown", "code: overloaded", "Server is stopping")):
                    self.failures += 1
                    return
                assert not message, message
                self.predictions.append(y_of(response.infer_response))
                self._has_room.release()
        except grpc.RpcError as error:
            if error.code() not in RETRIED:
                raise
            self.failures += 1
        finally:
            self._is_over = True
            self._has_room.release()
            client.close()

    def _requests(self, first: int, room: threading.Semaphore) -> Iterator[object]:
        for n in itertools.count(first):
            room.acquire()
            if self._is_over or n == self.length:
                return
            retry: dict[str, Any] = {"step": n + 1, "idempotency_key": f"{self._sequence}-{n}"}
            yield infer_request("fold", {"x": integer(n)}, sequence_id=self._sequence, sequence_start=n == 0, **retry)


@pytest.mark.slow
def test_streams_survive_a_kill_and_a_restart_of_the_service(redis_server: Server, tmp_path: Path) -> None:
    flags = ("--redis", redis_server.url, "--drain-s", "1")
    with GrpcService(write_models(tmp_path / "models", fold), tmp_path, *flags).running() as one:
        senders = [SequenceSender(one.grpc_port, f"s{n}") for n in range(4)]
        for sender in senders:
            sender.start()
        for how in ("killed", "stopped"):
            before = [len(sender.predictions) for sender in senders]
            while any(len(sender.predictions) < n + BETWEEN for sender, n in zip(senders, before, strict=True)):
                for sender in senders:
                    sender.join(0.01)
                    assert sender.error is None
            if how == "killed":
                one.kill()
            else:
                assert one.stop() == 0
            one.start()
        for sender in senders:
            sender.length = len(sender.predictions) + 2 * AHEAD  # more than are on their way
        for sender in senders:
            sender.join(120)

    assert [sender.error for sender in senders] == [None] * 4
    for sender in senders:
        assert sender.predictions == fold_reference(range(len(sender.predictions)))
        assert len(sender.predictions) == sender.length
        assert sender.failures >= 2
