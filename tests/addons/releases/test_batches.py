"""Requests for streams of a trial and others: the answers and records are those of requests of their own."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.addons.releases.document import ReleaseDocument, ReleaseVersion, Trial, takes_part
from stepwell.addons.releases.document_changes import end
from stepwell.addons.releases.lookup import Releases
from stepwell.addons.releases.pair_state import PAIR_BYTES, pair_state_of
from stepwell.addons.releases.placing import ReleasePlacing
from stepwell.engine.engine import Engine
from stepwell.engine.options import EngineOptions
from stepwell.engine.stepping.outcomes import BulkOutcomes
from stepwell.errors import ServiceError
from stepwell.models.registry import ModelRegistry
from stepwell.store.keys import record_key
from stepwell.store.record import Record, decode
from stepwell.store.state_store import StateStore
from stepwell.types import BatchSources, BulkParts, BulkTimesteps, Prediction, Source, StreamKey
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.addons.releases.builds import adder, hanging
from tests.engine.harness import FOLD, CountingObserver, chunk, closing, step, ys
from tests.graphs import fold, fold_reference, lstm, write_model
from tests.servers import Server

MANY = [f"s{n}" for n in range(40)]
PERCENT, SALT = 40.0, "salt"
OLD_FACTOR, NEW_FACTOR = 1_000_003, 31

PAIRED = [name for name in MANY if takes_part(record_key("default", FOLD, name), SALT, PERCENT)]
OTHERS = [name for name in MANY if name not in PAIRED]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for version, factor in ((1, OLD_FACTOR), (2, NEW_FACTOR)):
        write_model(tmp_path, FOLD, partial(fold, factor), version=version)
    return tmp_path


@asynccontextmanager
async def trial(
    url: str,
    folder: Path,
    mode: str = "shadow",
    percent: float | None = PERCENT,
    counts: CountingObserver | None = None,
    options: EngineOptions | None = None,
) -> AsyncIterator[Engine]:
    """Run a worker that tries version 2 on a share of the streams; `percent` None: there is no release."""
    models, releases = ModelRegistry([folder], StepModel), Releases()
    assert not (await models.reload()).failed
    old, new = (ReleaseVersion(n, models.get(FOLD, n).fingerprint) for n in (1, 2))
    running = Trial(old, new, 1, 0.0, mode, ((0.0, percent or 0.0),), 0.0, salt=SALT)  # type: ignore[arg-type]  # a mode
    releases.put(FOLD, ReleaseDocument(FOLD, 1, old, 0.0, None if percent is None else running))
    store = StateStore(url)
    engine = Engine(store, models, options, counts, placing=ReleasePlacing(store, models, None, releases))
    async with closing(engine):
        yield engine


def placing_of(engine: Engine) -> ReleasePlacing:
    assert isinstance(engine.placing, ReleasePlacing)
    return engine.placing


async def columns(
    engine: Engine, names: Sequence[str], xs: Array, seq: int, *, sources: Sequence[Source] = (), **more: Any
) -> list[Prediction | ServiceError]:
    """Send one row of each stream in columns, and return the results one by one."""
    found = await send_columns(engine, names, xs, seq, sources=sources, **more)
    return found.by_row() if isinstance(found, BulkParts) else [Prediction(found.batch, i) for i in range(len(names))]


async def send_columns(
    engine: Engine, names: Sequence[str], xs: Array, seq: int, *, sources: Sequence[Source] = (), **more: Any
) -> BulkOutcomes:
    """Send one row of each stream in columns; `xs` is `(streams, T, *row)`."""
    keys = [StreamKey("default", FOLD, name) for name in names]
    bulk = BulkTimesteps(
        keys=keys, names=[record_key(*key) for key in keys], inputs={"x": xs}, packed=[(row.tobytes(),) for row in xs],
        length=xs.shape[1], seqs=[seq] * len(keys), afters=[None] * len(keys),
        sources=BatchSources.of(sources) if sources else None, **more,
    )  # fmt: skip
    done: asyncio.Future[BulkOutcomes] = asyncio.get_running_loop().create_future()
    engine.steps.submit_bulk(bulk, done.set_result, engine.models.get(FOLD, 1))
    return await done


async def singles(engine: Engine, names: Sequence[str], xs: Sequence[int], seq: int, **more: Any) -> list[Prediction]:
    """Send one timestep of each stream, one by one, without waiting."""
    served = engine.models.get(FOLD, 1)
    done = [asyncio.get_running_loop().create_future() for _ in names]
    for name, x, future in zip(names, xs, done, strict=True):
        engine.steps.submit(step(name, x, seq=seq, **more), future.set_result, served)
    found: list[Prediction] = await asyncio.gather(*done)
    return found


def applied(found: Sequence[Prediction | ServiceError]) -> list[Prediction]:
    """Return the predictions, of which none is an error."""
    assert not [one for one in found if isinstance(one, ServiceError)]
    return [one for one in found if isinstance(one, Prediction)]


async def begin(engine: Engine) -> int:
    """Step every stream until its record is cached by what steps it, and return the step; timestep t is t."""
    for seq in (1, 2, 3):
        await columns(engine, MANY, numbers([seq] * len(MANY)), seq)
    return 3


def numbers(xs: Sequence[int]) -> Array:
    return np.array(xs, np.int64)[:, None, None]


async def records(engine: Engine, names: Sequence[str] = MANY) -> dict[str, Record]:
    """Return the streams' records in the store."""
    deadline = asyncio.get_running_loop().time() + 30
    stored = await engine.store.load([record_key("default", FOLD, name) for name in names], deadline=deadline)
    return {name: decode(one) for name, one in zip(names, stored, strict=True) if one is not None}


def values(record: Record) -> tuple[int, ...]:
    """Return the state of a fold's record: of a pair, those of both versions."""
    pair = pair_state_of(record.fingerprint, record.state)
    return tuple(np.frombuffer(record.state if pair is None else record.state[:-PAIR_BYTES], np.int64).tolist())


def totals(seq: int, *more: Sequence[int]) -> list[list[int]]:
    """Return the sums of all streams after `begin` and each of some more timesteps."""
    return [[sum(range(seq + 1)) + sum(xs) for xs in zip(*more[: i + 1], strict=True)] for i in range(len(more))]


async def test_the_rows_of_both_versions_stay_columns(folder: Path, redis_server: Server) -> None:
    async with trial(redis_server.url, folder) as engine:
        seq = await begin(engine)
        found = await send_columns(engine, MANY, numbers([5] * len(MANY)), seq + 1)

    assert isinstance(found, BulkParts)
    assert not found.others
    ys = [one.outputs["y"].item() for one in found.by_row() if isinstance(one, Prediction)]
    assert ys == [fold_reference([1, 2, 3, 5], factor=OLD_FACTOR)[-1]] * len(MANY)


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("mode", ["shadow", "ramp"])
async def test_records_and_answers_are_bit_for_bit_those_of_requests_of_their_own(
    redis_server: Server, tmp_path: Path, mode: str, length: int
) -> None:
    """A float model: of streams outside the trial as without a release, of pairs as if all streams were pairs."""
    for version in (1, 2):
        write_model(tmp_path, FOLD, partial(lstm, seed=version), version=version)
    rng = np.random.default_rng(7)
    seen: list[tuple[dict[str, Any], dict[str, Record]]] = []
    inputs = [rng.normal(size=(len(MANY), length, 4)).astype(np.float32) for _ in range(6)]
    for percent in (PERCENT, None, 100.0):
        async with trial(redis_server.url, tmp_path, mode, percent) as engine:
            for i, xs in enumerate(inputs):
                found = await columns(engine, MANY, xs, i * length + 1)
            seen.append(
                ({n: one.outputs["y"] for n, one in zip(MANY, applied(found), strict=True)}, await records(engine))
            )
        with redis_server.client() as client:
            client.flushall()
    (answers, tried), (plain_answers, plain), (pair_answers, pairs) = seen

    assert {n: answers[n].tobytes() for n in MANY} == {
        n: (pair_answers if n in PAIRED else plain_answers)[n].tobytes() for n in MANY
    }
    for name in MANY:
        same = (pairs if name in PAIRED else plain)[name]
        for field in ("step", "history_hash", "op_id", "fingerprint", "outputs", "state", "flags"):
            assert getattr(tried[name], field) == getattr(same, field), (name, field)


@pytest.mark.parametrize("seed", range(3))
async def test_any_mix_of_requests_and_workers_steps_both_halves(folder: Path, redis_server: Server, seed: int) -> None:
    rng, sent = random.Random(seed), {name: list[int]() for name in MANY}
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(trial(redis_server.url, folder, "ramp")) for _ in range(2)]
        for _ in range(40):
            engine, kind, x = (
                rng.choice(workers),
                rng.choice(["columns", "columns", "singles", "chunks"]),
                rng.randrange(99),
            )
            some = [name for name in MANY if len(sent[name]) == max(map(len, sent.values()))]
            names = rng.sample(some, rng.randint(min(20, len(some)), len(some))) if rng.random() < 0.3 else some
            seq, xs = len(sent[names[0]]) + 1, [x, x + 1] if kind == "chunks" else [x]
            again = rng.choice([0, 0, 1])
            for one in [engine, rng.choice(workers)][: 1 + again]:
                if kind == "columns":
                    found = await columns(one, names, numbers([x] * len(names)), seq)
                elif kind == "singles":
                    found = [*await singles(one, names, [x] * len(names), seq)]
                else:
                    found = await asyncio.gather(*(one.steps.advance(chunk(n, xs, seq=seq)) for n in names))
            for name in names:
                sent[name] += xs
            wanted = {
                name: fold_reference(sent[name], factor=NEW_FACTOR if name in PAIRED else OLD_FACTOR)[-len(xs) :]
                for name in names
            }
            assert {name: ys(one) for name, one in zip(names, applied(found), strict=True)} == wanted
            for name in [name for name in MANY if len(sent[name]) < max(map(len, sent.values()))]:
                missing = len(sent[names[0]]) - len(sent[name])
                await engine.steps.advance(chunk(name, [5] * missing, seq=len(sent[name]) + 1))
                sent[name] += [5] * missing
        stored = await records(workers[0])

    assert {name: values(record) for name, record in stored.items()} == {
        name: tuple(fold_reference(sent[name], factor=f)[-1] for f in (OLD_FACTOR, NEW_FACTOR)[: 1 + (name in PAIRED)])
        for name in MANY
    }


async def test_a_stream_that_another_worker_stepped_is_rejected_alone(folder: Path, redis_server: Server) -> None:
    stepped = [PAIRED[1], OTHERS[3]]
    async with trial(redis_server.url, folder) as one, trial(redis_server.url, folder) as two:
        seq = await begin(one)
        for name in stepped:
            await two.steps.advance(step(name, 8, seq=seq + 1))
        found = dict(zip(MANY, await columns(one, MANY, numbers([9] * len(MANY)), seq + 1), strict=True))

    refused = {name: one.code for name, one in found.items() if isinstance(one, ServiceError)}
    assert refused == dict.fromkeys(stepped, "seq_conflict")
    [*_, last] = fold_reference([*range(1, seq + 1), 9], factor=OLD_FACTOR)
    assert {ys(one)[0] for one in found.values() if isinstance(one, Prediction)} == {last}


async def test_rows_that_were_applied_before_are_replayed(folder: Path, redis_server: Server) -> None:
    async with trial(redis_server.url, folder) as engine:
        seq = await begin(engine)
        sent_before = [PAIRED[0], OTHERS[0]]
        first = await singles(engine, sent_before, [9, 9], seq + 1)
        found = dict(zip(MANY, await columns(engine, MANY, numbers([9] * len(MANY)), seq + 1), strict=True))

    replayed = {name: one for name, one in found.items() if isinstance(one, Prediction) and one.replayed}
    assert sorted(replayed) == sorted(sent_before)
    assert [replayed[name].state_id for name in sent_before] == [one.state_id for one in first]
    assert len({ys(one)[0] for one in found.values() if isinstance(one, Prediction)}) == 1


@pytest.mark.parametrize("mode", ["shadow", "ramp"])
async def test_a_candidate_that_hangs_is_ended_and_every_stream_goes_on_by_the_old_version(
    redis_server: Server, tmp_path: Path, mode: str
) -> None:
    write_model(tmp_path, FOLD, adder, version=1)
    write_model(tmp_path, FOLD, hanging, version=2)
    options = EngineOptions(run_timeout_s=0.5, request_timeout_s=300)
    async with trial(redis_server.url, tmp_path, mode, options=options) as engine:
        seq = await begin(engine)
        xs = [10**12 if name == PAIRED[2] else 5 for name in MANY]
        found = [await columns(engine, MANY, numbers(xs), seq + 1)]
        found.append(await columns(engine, MANY, numbers([1] * len(MANY)), seq + 2))
        stored = await records(engine)

    assert [[ys(one)[0] for one in applied(each)] for each in found] == totals(seq, xs, [1] * len(MANY))
    assert not [one for one in stored.values() if pair_state_of(one.fingerprint, one.state)]


async def test_positions_of_sources_are_kept(folder: Path, redis_server: Server) -> None:
    async with trial(redis_server.url, folder) as engine:
        start = await begin(engine)
        for seq in (start + 1, start + 2):
            sources = [Source(n.to_bytes(8, "little"), (seq,)) for n in range(1, len(MANY) + 1)]
            found = await columns(engine, MANY, numbers([9] * len(MANY)), seq, sources=sources)
        stored = await records(engine)

    assert not [one for one in found if isinstance(one, ServiceError)]
    assert {[at for _, at in record.sources] == [start + 2] for record in stored.values()} == {True}


@pytest.mark.parametrize("ended_in", ["pairs", "both"])
async def test_streams_move_although_their_batch_was_in_flight_when_the_release_ended(
    folder: Path, redis_server: Server, ended_in: str
) -> None:
    """Their records are not cached as those of pairs."""
    counts = CountingObserver()
    first, second = (PAIRED[:8] + OTHERS[:12], PAIRED[8:] + OTHERS[12:]) if ended_in == "both" else (PAIRED, OTHERS)
    async with trial(redis_server.url, folder, counts=counts) as engine:
        start = await begin(engine)
        document = placing_of(engine).documents.current(FOLD)
        assert document is not None
        with redis_server.client() as client:
            client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
            counts.batches.clear()
            in_flight = asyncio.create_task(columns(engine, first, numbers([9] * len(first)), start + 1))
            while not counts.batches:  # noqa: ASYNC110 - there is no event of it
                await asyncio.sleep(0)
            placing_of(engine).documents.put(FOLD, end(document, "aborted", None, 1.0))
            others = asyncio.create_task(columns(engine, second, numbers([9] * len(second)), start + 1))
            await asyncio.sleep(0)  # they are submitted
            while engine.steps.waiting:  # noqa: ASYNC110 - nor of this
                await asyncio.sleep(0)
            await asyncio.sleep(0)  # their batch has begun
            client.execute_command("CLIENT", "UNPAUSE")
        found = [*await in_flight, *await others, *await columns(engine, MANY, numbers([9] * len(MANY)), start + 2)]
        stored = await records(engine)

    assert len(applied(found)) == 2 * len(MANY)
    assert [name for name, one in stored.items() if pair_state_of(one.fingerprint, one.state)] == []


async def test_a_pair_whose_release_has_ended_is_not_kept_in_memory(folder: Path, redis_server: Server) -> None:
    """Its two ONNX sessions would be kept with it; no further model or version is needed."""
    async with trial(redis_server.url, folder, percent=100.0) as engine:
        await engine.steps.advance(step("s1", 1))
        document = placing_of(engine).documents.current(FOLD)
        assert document is not None
        paired = [weakref.ref(served.step_model) for served in engine.steps.models if served.parts]
        assert len(paired) == 1
        placing_of(engine).documents.put(FOLD, end(document, "aborted", None, 1.0))
        await engine.steps.advance(step("s1", 2))
        await placing_of(engine).comparison.flush()
        engine.steps.close_unused()
        gc.collect()

        assert paired[0]() is None
