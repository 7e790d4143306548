"""Commits of a batch in arrays: sent as the same bytes as the single commits."""

from __future__ import annotations

from typing import Any, cast

import hiredis
import numpy as np
from hypothesis import assume, given
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


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), max_size=3), st.integers(0, 3), st.booleans())
def test_joined_commits_are_sent_as_a_list_of_them(shapes: list[tuple[int, int]], n_others: int, keep: bool) -> None:
    """Of streams that exist, of missing ones, and others whose records have any length."""
    assume(shapes or n_others)
    parts = []
    for at, (rows, record_bytes) in enumerate(shapes):
        names = [f"swl:1:{{t/m/{at}-{row}}}" for row in range(rows)]
        part = ColumnarCommits(names, record_bytes, missing=at == 1)
        part.guards[:], part.records[:] = at, 100 + at
        parts.append(part)
    others = [Commit(f"swl:1:{{t/m/other-{n}}}", b"g" * 7 * n, b"r" * (n + 1)) for n in range(n_others)]
    one_by_one = [*(commit for part in parts for commit in part), *others]
    joined = JoinedCommits(parts, others)

    plain = script_call(one_by_one, ttl_ms=1000, entry_ttl_ms=2000, keep_ttl=keep)
    prepared = rows_call(joined, ttl_ms=1000, entry_ttl_ms=2000, keep_ttl=keep)

    assert [*joined] == one_by_one
    assert [joined[i] for i in range(len(joined))] == one_by_one
    assert prepared.packed == hiredis.pack_command(cast("Any", plain))
    assert tuple(prepared) == plain
