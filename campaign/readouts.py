"""`run`: streams that learn, under kills, retries and duplicates: what they have learned is a fold, bit for bit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from campaign.faults import inject_faults
from campaign.system import System, running_system
from campaign.tally import Tally
from stepwell_client import Client
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.exactly_once.http import Http, NoAnswerError
from tests.exactly_once.test_learned import timesteps, write_learning_model

MODEL = "machine"
_TIMEOUT_S = 6.0
_RETRY_S = 0.2
_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class ReadoutPlan:
    """Parameters of the campaign.

    Attributes:
        seconds: How long streams are stepped and faults are injected.
        streams: Streams, each with readouts, an interval and thresholds of its own.
        seed: Seed of all random choices; the timing is not reproducible.
        fault_every_s: Seconds between two faults, on average.
        twice: Share of the timesteps that are sent to both workers at once.
    """

    seconds: float
    streams: int
    seed: int
    fault_every_s: float = 5.0
    twice: float = 0.15


@dataclass(slots=True)
class ReadoutResult:
    """What was found.

    Attributes:
        steps: Acknowledged timesteps.
        truths: Those of them with a truth.
        retries: Requests that were sent again after no answer, or an error.
        twice: Timesteps that were sent to both workers at once.
        replayed: Responses that were marked as replayed.
        faults: Injected faults by kind.
        longest: Timesteps of the stream that has most.
        wrong: Streams whose state or answers are not those of the fold, and how.
    """

    steps: int = 0
    truths: int = 0
    retries: int = 0
    twice: int = 0
    replayed: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    longest: int = 0
    wrong: list[str] = field(default_factory=list)


async def run(
    plan: ReadoutPlan, folder: Path, found: ReadoutResult, on_progress: Callable[[float], None] = lambda _: None
) -> None:
    """Run the campaign; the results are in `found`.

    Args:
        plan: The parameters.
        folder: For the models, the sockets and the logs; its path must be short enough for a unix socket.
        found: Receives the results.
        on_progress: Called regularly with the elapsed seconds.
    """
    (folder / "models").mkdir()
    write_learning_model(folder / "models")
    async with running_system(folder) as system:
        streams = [_Stream(plan, n, system, found) for n in range(plan.streams)]
        over, tally = asyncio.Event(), Tally()
        async with asyncio.TaskGroup() as tasks:
            for stream in streams:
                tasks.create_task(stream.run(over))
            tasks.create_task(inject_faults(system, random.Random(plan.seed), tally, plan.fault_every_s, over))
            tasks.create_task(_wait(plan.seconds, over, on_progress))
        found.faults = dict(tally.faults)
        found.longest = max(stream.sent for stream in streams)
        await asyncio.to_thread(_check, folder / "models" / f"{MODEL}.onnx", system, streams, found)


class _Stream:
    """One stream: its timesteps, each sent until it is acknowledged, and its answers."""

    def __init__(self, plan: ReadoutPlan, number: int, system: System, found: ReadoutResult) -> None:
        self.name = f"s{number}"
        self.rows = timesteps(_ROWS, plan.seed * 10_000 + number)
        self.sent = 0
        self.answers: list[dict[str, Any]] = []
        self._ports, self._found, self._twice = system.ports, found, plan.twice
        self._rng = random.Random(plan.seed * 10_000 + number)

    async def run(self, over: asyncio.Event) -> None:
        """Step the stream until `over` is set."""
        http = Http()
        try:
            while not over.is_set() and self.sent < _ROWS:
                await self._step(http, self.rows[self.sent])
        finally:
            http.close()

    async def _step(self, http: Http, row: Array) -> None:
        values = [None if np.isnan(value) else float(value) for value in row]
        body = {"inputs": {"x": values}, "seq": self.sent + 1}
        is_twice = self._rng.random() < self._twice
        self._found.twice += is_twice
        while True:
            ports = self._rng.sample(self._ports, len(self._ports))[: 1 + is_twice]
            answers = await asyncio.gather(*(self._post(http, port, body) for port in ports))
            if known := [answer for answer in answers if answer is not None]:
                break
            self._found.retries += 1
            await asyncio.sleep(_RETRY_S)
        if any(answer["outputs"] != known[0]["outputs"] for answer in known):
            self._found.wrong.append(f"{self.name}, step {self.sent + 1}: two answers to one timestep")
        self.answers.append(known[0]["outputs"])
        self._found.replayed += sum(bool(answer.get("replayed")) for answer in known)
        self.sent += 1
        self._found.steps += 1
        self._found.truths += not np.isnan(row[0])

    async def _post(self, http: Http, port: int, body: dict[str, Any]) -> dict[str, Any] | None:
        """Return a response; None: there was none, or the timestep may be sent again."""
        try:
            status, answer = await http.request(
                "POST", port, f"/v1/models/{MODEL}/streams/{self.name}/step", body, timeout=_TIMEOUT_S
            )
        except NoAnswerError:
            return None
        return dict(answer) if status == 200 else None


async def _wait(seconds: float, over: asyncio.Event, on_progress: Callable[[float], None]) -> None:
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    while (elapsed := loop.time() - started_at) < seconds:
        on_progress(elapsed)
        await asyncio.sleep(_RETRY_S)
    over.set()


def _check(file: Path, system: System, streams: list[_Stream], found: ReadoutResult) -> None:
    """Compare each stream's state and answers with the model's own steps over its timesteps, one at a time."""
    model = StepModel(file)
    with Client(f"http://127.0.0.1:{system.ports[0]}") as client:
        for stream in streams:
            states = model.initial_states(1)
            for t, row in enumerate(stream.rows[: stream.sent]):
                outputs, states = model.step({"x": row[None]}, states)
                answer = stream.answers[t]
                if any(np.float32(answer[name]).tobytes() != value[0].tobytes() for name, value in outputs.items()):
                    found.wrong.append(f"{stream.name}, step {t + 1}: the answer is not that of the fold")
                    break
            stored = client.model(MODEL).stream(stream.name).state()
            if stored.step != stream.sent:
                found.wrong.append(f"{stream.name}: step {stored.step}, and {stream.sent} were acknowledged")
            differing = [
                name
                for name, array in states.items()
                if np.asarray(stored.states[name]).tobytes() != array[0].tobytes()
            ]
            if differing:
                found.wrong.append(f"{stream.name}: {', '.join(differing)} after {stream.sent} timesteps")
