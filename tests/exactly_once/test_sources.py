"""Timesteps of a log that are read again after crashes: each is applied once, and each known answer is the first one.

The reference is a fold and the rules of the record: which answers it still has. Chunks are cut anywhere, answers are
lost anywhere, and two workers take turns.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from stepwell.engine.engine import Engine
from stepwell.errors import ServiceError
from stepwell.types import Prediction, Source
from stepwell_client.wire.outcomes import ReturnMode
from tests.engine.harness import chunk, gather_results, step, worker, ys
from tests.graphs import fold, fold_reference, write_models
from tests.servers import Server

LOG = b"orders/3"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


class Log:
    """A log with gaps in its positions, and what the record of a stream that consumes it has."""

    def __init__(self, stream: str, rng: random.Random, length: int) -> None:
        self.stream = stream
        self.xs = [rng.randrange(-(2**63), 2**63) for _ in range(length)]
        self.at = [5 * i + rng.randrange(5) for i in range(length)]
        self.answers = fold_reference(self.xs)
        self.applied = 0  # timesteps, from the first one on
        self.known: list[int] = []  # indices of the timesteps whose answers the record has

    def expected(self, first: int, end: int, keep: ReturnMode) -> tuple[int, list[int | None]] | None:
        """Apply a request to the reference; return `skipped` and its answers, or None for `source_passed`."""
        skipped = max(0, min(self.applied, end) - first)
        known = [i for i in range(first, first + skipped) if i in self.known]
        if skipped < end - first:
            self.applied = end
            self.known = [*known, *range(first + skipped, end)] if keep == "all" else [end - 1]
        elif end - 1 not in known:
            return None
        known = [i for i in range(first, end) if i in known or i >= first + skipped]
        answers = [self.answers[i] if i in known else None for i in range(first, end)]
        return skipped, answers if keep == "all" else answers[-1:]


def answers_of(prediction: Prediction) -> list[int | None]:
    return [None] * prediction.unknown + list(ys(prediction)[prediction.unknown :])


async def send(engine: Engine, log: Log, first: int, end: int, **more: Any) -> Prediction | ServiceError:
    """Send timesteps of the log, and return the response or the error."""
    source = Source(LOG, tuple(log.at[first:end]))
    [found] = await gather_results(engine.steps.advance(chunk(log.stream, log.xs[first:end], source=source, **more)))
    assert isinstance(found, Prediction | ServiceError)
    return found


async def check(engine: Engine, log: Log, first: int, end: int, keep: ReturnMode, seq: int | None) -> None:
    expected = log.expected(first, end, keep)
    found = await send(engine, log, first, end, keep=keep, seq=seq)
    if isinstance(found, ServiceError):
        assert (found.code, found.applied, found.at) == ("source_passed", "yes", log.at[log.applied - 1])
        assert expected is None
        return
    assert expected == (found.skipped, answers_of(found)), (first, end, keep)
    assert found.step == end
    assert bool(found.state_id) == (end == log.applied)


async def test_a_log_read_again_after_crashes_is_applied_once(folder: Path, redis_server: Server) -> None:
    """Any cut of any part that was read before, with new timesteps behind it or not, on either of two workers."""
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        for seed in range(30):
            rng = random.Random(seed)
            log = Log(f"s{seed}", rng, 60)
            while log.applied < len(log.xs):
                first = rng.randrange(max(0, log.applied - 8), log.applied + 1)
                end = min(first + rng.randrange(1, 9), len(log.xs))
                keep: ReturnMode = rng.choice(["all", "all", "all", "last"])
                await check(rng.choice([one, two]), log, first, end, keep, rng.choice([None, first + 1]))
            final = await one.steps.advance(step(log.stream, 7))

            assert ys(final) == [fold_reference([*log.xs, 7])[-1]], seed


async def test_answers_survive_any_number_of_crashes(folder: Path, redis_server: Server) -> None:
    """One poll is open at a time, and grows by what was written meanwhile; no answer of it is ever lost."""
    async with worker(redis_server.url, folder) as engine:

        async def poll(log: Log, first: int, end: int) -> None:
            found = await send(engine, log, first, end)
            assert isinstance(found, Prediction)
            assert answers_of(found) == log.answers[first:end], log.stream

        for seed in range(10):
            rng = random.Random(seed)
            log, handed_over = Log(f"s{seed}", rng, 80), 0
            while handed_over < len(log.xs):
                end = handed_over
                for _ in range(rng.randrange(1, 5)):  # each but the last ends in a crash before anything is handed over
                    end = min(end + rng.randrange(1, 6), len(log.xs))
                    await poll(log, handed_over, end)
                cut = rng.randrange(handed_over + 1, end + 1)  # the same poll comes again in two parts
                for first, last in ((handed_over, cut), (cut, end)):
                    if first < last:
                        await poll(log, first, last)
                handed_over = end


async def test_two_readers_of_one_log_apply_each_timestep_once(folder: Path, redis_server: Server) -> None:
    """Both send at once, each with its own cut: whoever is second skips what the other has applied."""
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:

        async def read(engine: Engine, log: Log, lengths: random.Random) -> None:
            at = 0
            while at < len(log.xs):
                end = min(at + lengths.randrange(1, 5), len(log.xs))
                found = await send(engine, log, at, end)
                if isinstance(found, ServiceError):
                    assert found.code == "source_passed"
                else:
                    assert answers_of(found)[found.unknown :] == log.answers[at:end][found.unknown :]
                    assert found.step == end
                at = end

        for seed in range(5):
            log = Log(f"s{seed}", random.Random(seed), 40)
            await asyncio.gather(read(one, log, random.Random(seed)), read(two, log, random.Random(seed + 100)))
            final = await one.steps.advance(step(log.stream, 7))

            assert final.step == len(log.xs) + 1
            assert ys(final) == [fold_reference([*log.xs, 7])[-1]], seed
