"""The cache of records: what is stored is found again, within a bound in bytes."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.engine.stepping.record_cache import EMPTY_SLOT, CachedRecord, CacheMemory, RecordCache
from stepwell.store.record import SourcePosition
from stepwell.store.record_arrays import HEADER_DTYPE, empty_header, sources_in, sources_table
from stepwell_export.runtime.manifest import Array

STATE = b"begin..."
RECORD_BYTES = 420  # bytes that one record with such a state takes, approximately


def make_cache(records: int) -> RecordCache:
    return RecordCache(empty_header(b"f" * 8), STATE, records * RECORD_BYTES)


def put(cache: RecordCache, *names: str, step: int = 1, refreshed: float = 5.0) -> None:
    heads = np.zeros(len(names), HEADER_DTYPE)
    heads["step"] = step
    cache.put(names, heads, np.full((len(names), len(STATE)), step, np.uint8), refreshed)


def slots(cache: RecordCache, *names: str) -> Array:
    return cache.slots_for(names)


def test_a_stored_record_is_found() -> None:
    cache = make_cache(10)
    put(cache, "a", "b", step=1, refreshed=3.0)
    put(cache, "c", step=2, refreshed=4.0)

    at = slots(cache, "c", "a")

    assert cache.headers(at)["step"].tolist() == [2, 1]
    assert cache.states(at).tolist() == [[2] * 8, [1] * 8]
    assert cache.expiry_set_at(at).tolist() == [4.0, 3.0]


def test_a_missing_stream_reads_as_a_new_stream() -> None:
    cache = make_cache(10)
    put(cache, "a")

    at = slots(cache, "b")

    assert at.tolist() == [EMPTY_SLOT]
    assert cache.headers(at)["step"].tolist() == [0]
    assert cache.states(at).tobytes() == STATE
    assert cache.expiry_set_at(at).tolist() == [-np.inf]


def test_a_full_cache_evicts_a_stream_that_was_not_read() -> None:
    cache = make_cache(10)
    names = [f"s{n}" for n in range(100)]
    for name in names:
        put(cache, name)
        cache.slots_for(["s0"])

    assert 5 < len(cache) < 20
    assert slots(cache, "s0", "s1").astype(bool).tolist() == [True, False]


def test_a_batch_larger_than_the_cache_leaves_no_wrong_record() -> None:
    cache = make_cache(1)
    heads = np.zeros(5, HEADER_DTYPE)
    heads["step"] = range(1, 6)
    cache.put("abcde", heads, np.zeros((5, len(STATE)), np.uint8), 1.0)

    assert {n: cache.headers(slots(cache, n))["step"].tolist() for n in "abcde" if slots(cache, n)} == {"e": [5]}


def test_returned_copies_do_not_change_with_the_cache() -> None:
    cache = make_cache(10)
    put(cache, "a", step=1)
    at = slots(cache, "a")
    heads, states = cache.headers(at), cache.states(at)
    put(cache, "a", step=2)

    assert (heads["step"].tolist(), states.max()) == ([1], 1)


def test_changing_the_limit_keeps_the_records_that_fit() -> None:
    names = [f"s{n}" for n in range(8)]
    for records in (1, 3, 5, 8, 20):
        cache = make_cache(10)
        for n, name in enumerate(names):
            put(cache, name, step=n + 1)
        cache.drop("s7")
        cache.limit(records * RECORD_BYTES)

        found = dict(zip(names, cache.headers(slots(cache, *names))["step"].tolist(), strict=True))
        kept = {name: step for name, step in found.items() if step}
        assert len(kept) == len(cache) == min(records, 7)
        assert all(step == int(name[1:]) + 1 for name, step in kept.items())
        assert not cache.slots_for(["s7"])


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 9)), max_size=60))
def test_whatever_happens_to_its_bound_a_cache_has_the_newest_record_or_none(happens: list[tuple[str, int]]) -> None:
    cache, newest = make_cache(4), dict.fromkeys("abcdefgh", 0)
    for step, (name, what) in enumerate(happens, 1):
        if what == 0:
            cache.drop(name)
        elif what <= 2:
            cache.limit(step % 9 * RECORD_BYTES)
        else:
            put(cache, name, step=step)
            newest[name] = step
        found = cache.headers(slots(cache, *newest))["step"].tolist()

        assert all(one in (0, known) for one, known in zip(found, newest.values(), strict=True))
        assert sum(map(bool, found)) == len(cache)


# ---------------------------------------------------------------- several models


def fill(cache: RecordCache, prefix: str, records: int) -> None:
    for n in range(records):
        put(cache, f"{prefix}{n}")


def test_a_model_that_comes_takes_nothing_from_those_that_fit_beside_it() -> None:
    memory = CacheMemory(160 * RECORD_BYTES)
    first = memory.new_cache(empty_header(b"f" * 8), STATE)
    fill(first, "a", 130)
    memory.new_cache(empty_header(b"g" * 8), STATE)

    assert len(first) == 130


def test_models_that_need_more_than_there_is_have_equal_shares() -> None:
    memory = CacheMemory(160 * RECORD_BYTES)
    first = memory.new_cache(empty_header(b"f" * 8), STATE)
    fill(first, "a", 300)
    alone = len(first)
    second = memory.new_cache(empty_header(b"g" * 8), STATE)
    beside = len(first)
    fill(second, "b", 300)

    assert alone > 150
    assert beside > 0.8 * alone, "what came is empty as yet"
    assert len(first) == pytest.approx(alone / 2, rel=0.1)
    assert len(second) == pytest.approx(alone / 2, rel=0.1)
    assert first.nbytes + second.nbytes <= 160 * RECORD_BYTES


def test_a_model_that_goes_leaves_its_room_to_the_others() -> None:
    memory = CacheMemory(160 * RECORD_BYTES)
    first = memory.new_cache(empty_header(b"f" * 8), STATE)
    second = memory.new_cache(empty_header(b"g" * 8), STATE)
    fill(first, "a", 300)
    fill(second, "b", 300)
    memory.remove(second)
    fill(first, "a", 300)

    assert len(first) > 150


def put_with_source(cache: RecordCache, name: str, at: int) -> None:
    source = sources_table([[SourcePosition(b"log.....", at)]])
    header, state = np.zeros(1, HEADER_DTYPE), np.zeros((1, len(STATE)), np.uint8)
    cache.put([name], header, state, 5.0, source)


def positions(cache: RecordCache, *names: str) -> list[list[int]]:
    """Return the positions of the sources of each record."""
    found = cache.sources(slots(cache, *names))
    return [[] for _ in names] if found is None else [[at for _, at in sources_in(row)] for row in found]


def test_the_positions_of_sources_are_found_with_their_record() -> None:
    cache = make_cache(10)
    put(cache, "a")
    put_with_source(cache, "b", 7)
    put(cache, "c")

    assert positions(cache, "c", "b", "a", "missing") == [[], [7], [], []]
    assert [(cache.get_one(name) or CachedRecord(b"", np.empty(0), 0.0)).sources for name in "ab"] == [
        (),
        (SourcePosition(b"log.....", 7),),
    ]


def test_room_for_positions_is_allocated_as_records_are_added() -> None:
    """The first source of a model made room for as many records as the cache may have: 80 ms for 45 MB."""
    cache = make_cache(1_000_000)
    put(cache, "a")
    before = resident_bytes()
    put_with_source(cache, "b", 7)

    assert resident_bytes() - before < 4_000_000
    assert positions(cache, "a", "b", "missing") == [[], [7], []]


def resident_bytes() -> int:
    """Return the memory of this process that the kernel has given it pages for."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_record_that_is_put_alone_keeps_its_sources() -> None:
    cache = make_cache(10)
    put(cache, "a")
    put(cache, "b")
    record = cache.get_one("a")
    assert record is not None
    cache.put_one("a", record._replace(sources=(SourcePosition(b"log.....", 3),)))  # the first one with any
    cache.put_one("b", record._replace(sources=(SourcePosition(b"log.....", 4), SourcePosition(b"other...", 5))))

    assert positions(cache, "a", "b") == [[3], [4, 5]]


def test_a_record_without_sources_replaces_one_that_had_some() -> None:
    cache = make_cache(10)
    for name in "ab":
        put(cache, name)
        before = cache.get_one(name)
        assert before is not None
        put_with_source(cache, name, 7)
        if name == "a":
            put(cache, "a")
        else:
            cache.put_one("b", before)

    assert positions(cache, "a", "b") == [[], []]


def test_positions_of_sources_follow_every_limit() -> None:
    """They take memory, too: with the first of them, the same limit has room for fewer records."""
    cache = make_cache(100)
    put(cache, *[f"a{n}" for n in range(100)])
    before = len(cache)
    put_with_source(cache, "b", 7)
    after = len(cache)
    put_with_source(cache, "c", 8)
    kept = {}
    for records in (20, 200, 5, 50):
        cache.limit(records * RECORD_BYTES)
        put_with_source(cache, f"d{records}", records)
        put(cache, "e")
        kept[records] = positions(cache, f"d{records}", "e")

    assert before > after
    assert kept == {records: [[records], []] for records in (20, 200, 5, 50)}
