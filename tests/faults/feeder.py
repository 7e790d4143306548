"""`Feeder`: a client that keeps its inputs and results, and resends timesteps that the server has lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stepwell.engine.engine import Engine
from stepwell.errors import ServiceError
from stepwell.types import Prediction, Timestep
from tests.engine.harness import chunk, ys
from tests.graphs import fold_reference

PAUSE_S = 0.02


@dataclass
class Feeder:
    """One stream of the exact fold model.

    Attributes:
        stream: The stream's id.
        pick: Returns the worker for each request.
        keyed: Whether requests have an idempotency key.
        xs: The inputs so far.
        told: The confirmed prediction and state id of each timestep.
        asked_again: Requests that were retried unchanged.
        sent_again: Timesteps that the store had lost and that were resent.
        wrong: Deviations from the fold or from earlier results.
    """

    stream: str
    pick: Callable[[], Engine]
    keyed: bool = False
    xs: list[int] = field(default_factory=list)
    told: list[tuple[int, bytes]] = field(default_factory=list)
    asked_again: int = 0
    sent_again: int = 0
    wrong: list[str] = field(default_factory=list)

    async def step(self, x: int) -> None:
        """Step the stream by one timestep, with retries."""
        self.xs.append(x)
        await self.catch_up()

    async def catch_up(self) -> None:
        """Send the timesteps that the server does not have yet."""
        at = len(self.told)
        while at < len(self.xs):
            try:
                answer = await self.pick().steps.advance(self._request(at))
            except ServiceError as exc:
                at = await self._after(exc, at)
            else:
                self._take(answer, at)
                at += 1

    def _request(self, at: int) -> Timestep:
        after = self.told[at - 1][1] if at else None
        key = f"{self.stream}-{at}" if self.keyed else None
        return chunk(self.stream, [self.xs[at]], seq=at + 1, after=after, idempotency_key=key)

    async def _after(self, exc: ServiceError, at: int) -> int:
        if exc.retry == "same":
            self.asked_again += 1
            await asyncio.sleep(PAUSE_S)
            return at
        behind = exc.step if exc.step is not None else 0
        if exc.retry != "resend_from" or behind >= at:
            self.wrong.append(f"{self.stream} at {at}: {exc.code} {exc}")
            raise exc
        if behind and exc.state_id != self.told[behind - 1][1]:
            self.wrong.append(f"{self.stream} was rolled back to a history that it never had")
        self.sent_again += at - behind
        return behind

    def _take(self, answer: Prediction, at: int) -> None:
        told = (ys(answer)[0], answer.state_id)
        if at < len(self.told) and self.told[at] != told:
            self.wrong.append(f"{self.stream} at {at + 1}: first {self.told[at]}, then {told}")
        if answer.step != at + 1:
            self.wrong.append(f"{self.stream} at {at + 1}: got step {answer.step}")
        self.told[at : at + 1] = [told]

    def judged(self) -> list[str]:
        """Return all deviations, after comparing the predictions with the fold."""
        if [y for y, _ in self.told] != fold_reference(self.xs):
            self.wrong.append(f"{self.stream} is not the fold of its inputs")
        return self.wrong


def feeders(engines: Sequence[Engine], n: int, *, seed: int = 0, keyed_every: int = 0) -> list[Feeder]:
    """Return streams whose requests go to random workers; every `keyed_every`-th uses idempotency keys."""
    rng = random.Random(seed)
    return [
        Feeder(f"s{k}", lambda: rng.choice(engines), keyed=bool(keyed_every) and k % keyed_every == 0) for k in range(n)
    ]


async def run(streams: Sequence[Feeder], steps: int, *, seed: int = 0) -> None:
    """Step all streams concurrently by `steps` timesteps each."""
    rng = random.Random(seed)

    async def live(one: Feeder) -> None:
        for _ in range(steps):
            await one.step(rng.randrange(-(2**40), 2**40))

    await asyncio.gather(*(live(one) for one in streams))


async def run_until(streams: Sequence[Feeder], done: asyncio.Event, *, seed: int = 0) -> None:
    """Step all streams concurrently until an event is set."""
    rng = random.Random(seed)

    async def live(one: Feeder) -> None:
        while not done.is_set():
            await one.step(rng.randrange(-(2**40), 2**40))

    await asyncio.gather(*(live(one) for one in streams))


def told(streams: Sequence[Feeder]) -> int:
    """Return the number of confirmed timesteps."""
    return sum(len(one.told) for one in streams)


async def reached(streams: Sequence[Feeder], n: int) -> None:
    """Wait until at least `n` timesteps are confirmed."""
    while told(streams) < n:  # noqa: ASYNC110 - the streams have no event for it
        await asyncio.sleep(0.005)


def judged(streams: Sequence[Feeder]) -> list[str]:
    """Return the deviations of all streams."""
    return [deviation for one in streams for deviation in one.judged()]
