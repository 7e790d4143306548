"""Commits of a batch in arrays: sent as the same bytes as the single commits."""

from __future__ import annotations

from typing import Any, cast

import hiredis
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stepwell.store.commits import ColumnarCommits, Commit, JoinedCommits, rows_call, script_call
from stepwell.store.record import GUARD_BYTES


@given(st.data(), st.integers(1, 6), st.integers(1, 40), st.booleans())
def test_commits_in_arrays_are_sent_as_the_bytes_of_single_commits(
    data: st.DataObject, rows: int, record_bytes: int, keep: bool
) -> None:
    one_by_one = [
        Commit(
            f"swl:1:{{t/m/s{at}}}",
            data.draw(st.binary(min_size=GUARD_BYTES, max_size=GUARD_BYTES)),
            data.draw(st.binary(min_size=record_bytes, max_size=record_bytes)),
        )
        for at in range(rows)
    ]
    together = ColumnarCommits([commit.key for commit in one_by_one], record_bytes)
    together.guards[:] = [np.frombuffer(commit.expect, np.uint8) for commit in one_by_one]
    together.records[:] = [np.frombuffer(commit.record, np.uint8) for commit in one_by_one]

    plain = script_call(one_by_one, ttl_ms=1000, entry_ttl_ms=2000, keep_ttl=keep)
    prepared = rows_call(together, ttl_ms=1000, entry_ttl_ms=2000, keep_ttl=keep)

    assert [*together] == one_by_one
    assert prepared.packed == hiredis.pack_command(cast("Any", plain))
    assert tuple(prepared) == plain


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=4), st.booleans())
def test_commits_of_several_batches_are_sent_as_those_of_one(shapes: list[tuple[int, int]], keep: bool) -> None:
    parts = []
    for at, (rows, record_bytes) in enumerate(shapes):
        part = ColumnarCommits([f"swl:1:{{t/m/{at}-{row}}}" for row in range(rows)], record_bytes)
        part.guards[:], part.records[:] = at, 100 + at
        parts.append(part)
    one_by_one = [commit for part in parts for commit in part]
    joined = JoinedCommits(parts)

    plain = script_call(one_by_one, ttl_ms=1000, entry_ttl_ms=2000, keep_ttl=keep)
    prepared = rows_call(joined, ttl_ms=1000, entry_ttl_ms=2000, keep_ttl=keep)

    assert [*joined] == one_by_one
    assert [joined[i] for i in range(len(joined))] == one_by_one
    assert prepared.packed == hiredis.pack_command(cast("Any", plain))
    assert tuple(prepared) == plain
