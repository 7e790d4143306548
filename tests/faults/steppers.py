"""`Stepper`: a client over HTTP that sends each timestep once, whatever becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence

from tests.graphs import fold_reference

_WITHIN_S = 30


class Stepper:
    """Sends one stream's timesteps, each when the last is answered; after a failure, those of another stream.

    Attributes:
        answers: What came, stream by stream: step and prediction of each timestep.
        failures: Requests without a good answer.
    """

    def __init__(self, port: int, name: str, *, keeps_connection: bool) -> None:
        """Prepare.

        Args:
            port: Where the service is, on 127.0.0.1.
            name: What its streams' names begin with.
            keeps_connection: Send over one connection as long as the service keeps it, or over a new one each time.
        """
        self.answers: list[list[tuple[int, int]]] = [[]]
        self.failures: list[str] = []
        self._port = port
        self._name = name
        self._keeps = keeps_connection
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, done: asyncio.Event) -> None:
        """Send until an event."""
        while not done.is_set():
            x = len(self.answers[-1]) + 1
            try:
                async with asyncio.timeout(_WITHIN_S):
                    self.answers[-1].append(await self._step(x))
            except (OSError, EOFError, TimeoutError, ValueError) as exc:
                self.failures.append(f"{self._name}, timestep {x}: {exc!r}")
                self.answers.append([])
                self._close()
        self._close()

    def wrong(self) -> list[str]:
        """Return whatever is not as one server alone would have answered."""
        found = list(self.failures)
        for answers in self.answers:
            steps = range(1, len(answers) + 1)
            if answers != list(zip(steps, fold_reference(steps), strict=True)):
                found.append(f"{self._name} is not the fold of its inputs")
        return found

    async def _step(self, x: int) -> tuple[int, int]:
        if self._connection is None:
            self._connection = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._connection
        body = b'{"inputs":[%d],"seq":%d}' % (x, x)
        path = f"/v1/models/fold/streams/{self._name}-{len(self.answers)}/step"
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(length))
        if not self._keeps or b"\r\nconnection: close\r\n" in head:
            self._close()
        if not head.startswith(b"http/1.1 200 "):
            raise ValueError(answer)
        return answer["step"], answer["outputs"]["y"][0]

    def _close(self) -> None:
        if self._connection is not None:
            self._connection[1].close()
            self._connection = None


@contextlib.asynccontextmanager
async def stepping(steppers: Sequence[Stepper]) -> AsyncIterator[None]:
    """Let all of them send until the block ends."""
    done = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for stepper in steppers:
            tasks.create_task(stepper.run(done))
        yield
        done.set()
