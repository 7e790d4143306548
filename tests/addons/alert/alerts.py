"""`stepwell alert` as a separate process, and a webhook receiver that it posts to."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import numpy.typing as npt

from tests.addons.connect.connectors import ConnectorProcess
from tests.processes import ServiceProcess, free_port

SECRET = "of the tests"


class AlertProcess(ConnectorProcess):
    """A `stepwell alert` process; a test may kill and start it repeatedly."""

    command = "alert"
    _log_at = 0

    def start(self) -> AlertProcess:
        self._log_at = self.log.stat().st_size if self.log.exists() else 0
        super().start()
        return self

    @property
    def leads(self) -> bool:
        """Whether it evaluates the rules, by what it has reported last."""
        if self.process.poll() is not None:
            return False
        lines = [line for line in self.log.read_bytes()[self._log_at :].decode().splitlines() if "evaluates" in line]
        return bool(lines) and "this process" in lines[-1]


@contextlib.contextmanager
def alerting(folder: Path, rules: str, *words: object, processes: int = 1) -> Iterator[list[AlertProcess]]:
    """Run processes with the same rules until the block ends."""
    file = write_rules(folder, rules)
    running = [AlertProcess(folder, file, *words).start() for _ in range(processes)]
    try:
        yield running
    finally:
        for one in running:
            one.stop()


def write_rules(folder: Path, rules: str) -> Path:
    """Write a file of rules."""
    file = folder / "rules.toml"
    file.write_text(rules)
    return file


class WebhookReceiver:
    """A real HTTP server that checks each signature and keeps what it accepted, in its order.

    Attributes:
        accepted: The alarms that got 200, doubles included.
        times: When each arrived, seconds since 1970.
        unsigned: The number of requests whose signature was wrong.
        refusing: The status that every request gets meanwhile; 0: none.
        n_refused: Requests that got that status.
    """

    def __init__(self) -> None:
        self.accepted: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.unsigned = 0
        self.refusing = 0
        self.n_refused = 0
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> WebhookReceiver:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = self.rfile.read(length)
                if len(body) < length:  # the sender was killed
                    self.close_connection = True
                    return
                status = receiver.receive(body, self.headers.get("Stepwell-Signature", ""))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128
            allow_reuse_address = True

            def handle_error(self, *_: object) -> None:
                """Print nothing: the tests kill those that are connected."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Close the port: connections are refused until the next `start`."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def receive(self, body: bytes, signature: str) -> int:
        with self._lock:
            if self.refusing:
                self.n_refused += 1
                return self.refusing
            self.unsigned += not is_signed(body, signature)
            self.accepted.append(json.loads(body))
            self.times.append(time.time())
            return 200

    def alarms(self, **wanted: object) -> list[dict[str, Any]]:
        """Return what was accepted, each id once, in the order of its first arrival."""
        with self._lock:
            first = {alarm["id"]: alarm for alarm in reversed(self.accepted)}
            order = dict.fromkeys(alarm["id"] for alarm in self.accepted)
        return [first[one] for one in order if wanted.items() <= first[one].items()]

    def by_stream(self, **wanted: object) -> dict[str, list[tuple[str, int]]]:
        """Return state and step of each alarm of each stream, in order."""
        found: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for alarm in self.alarms(**wanted):
            found[alarm["stream"]].append((alarm["state"], alarm["step"]))
        return dict(found)


@contextlib.contextmanager
def webhook() -> Iterator[WebhookReceiver]:
    """Run a receiver until the block ends."""
    one = WebhookReceiver().start()
    try:
        yield one
    finally:
        one.stop()


def rules_to(service: ServiceProcess, receiver: WebhookReceiver, *rules: str) -> str:
    """Return a file of rules whose alarms a receiver gets."""
    to = f'[[to]]\nwebhook = "{receiver.url}"\nsecret = "{SECRET}"\n'
    return "\n".join([f'url = "{service.url}"', *(f"[[rule]]\n{rule}" for rule in rules), to])


@contextlib.contextmanager
def alarmed(
    service: ServiceProcess, folder: Path, *rules: str, processes: int = 1
) -> Iterator[tuple[WebhookReceiver, list[AlertProcess], httpx2.Client]]:
    """Run a receiver, processes with these rules and a client of the service until the block ends."""
    with (
        webhook() as receiver,
        alerting(
            folder, rules_to(service, receiver, *rules), "--data-dir", service.folder / "data", processes=processes
        ) as running,
        httpx2.Client(base_url=service.url, timeout=60) as http,
    ):
        yield receiver, running, http


def step_streams(http: httpx2.Client, model: str, streams: list[str], inputs: dict[str, Any]) -> dict[str, Any]:
    """Step streams once, in columns; sent again while the service is too busy. Returns the outputs."""
    while True:
        response = http.post(f"/v1/models/{model}/step", json={"streams": streams, "inputs": inputs})
        answer: dict[str, Any] = response.json()
        if response.status_code == 200:
            assert not answer.get("errors"), answer
            return dict(answer["outputs"])
        assert (response.status_code, answer["applied"]) == (503, "no"), answer


def is_signed(body: bytes, header: str) -> bool:
    """Whether a signature is right, computed as docs/alerts.md describes it."""
    parts = dict(part.split("=", 1) for part in header.split(",") if "=" in part)
    expected = hmac.new(SECRET.encode(), f"{parts.get('t')}.".encode() + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, parts.get("v1", "")) and abs(time.time() - int(parts["t"])) < 60


def expected_thresholds(
    holds: npt.NDArray[Any], clears: npt.NDArray[Any], for_steps: int, clear_for_steps: int = 1
) -> list[tuple[str, int]]:
    """Return state and step of the alarms of a stream: the offline computation.

    Args:
        holds: Whether `when` holds, by timestep.
        clears: Whether `clear` holds, by timestep.
        for_steps: Timesteps in a row in which `when` has to hold.
        clear_for_steps: Timesteps in a row in which `clear` has to hold.
    """
    alarms, raised, in_a_row = [], False, 0
    for step, (hold, clear) in enumerate(zip(holds, clears, strict=True), 1):
        if raised:
            in_a_row = in_a_row + 1 if clear and not hold else 0
            if in_a_row == clear_for_steps:
                raised, in_a_row = False, 0
                alarms.append(("cleared", step))
            continue
        in_a_row = in_a_row + 1 if hold else 0
        if in_a_row == for_steps:
            raised, in_a_row = True, 0
            alarms.append(("raised", step))
    return alarms
