"""`addons/connect/brokers/offsets_in_metadata.py`."""

from __future__ import annotations

import random

import pytest

from stepwell.addons.connect.brokers.offsets_in_metadata import MOST_CHARACTERS, DoneOffsets


@pytest.mark.parametrize("seed", range(5))
def test_what_is_done_is_known_again_from_the_floor_and_the_text(seed: int) -> None:
    rng = random.Random(seed)
    offsets = sorted(rng.sample(range(5, 400), 200))
    first = DoneOffsets(5)
    for offset in offsets:
        assert first.deliver(offset)
    done = set(rng.sample(offsets, 120))
    first.finish(done)

    again = DoneOffsets(first.floor, first.text())

    assert [one for one in offsets if again.deliver(one)] == [one for one in offsets if one not in done]
    assert all(one in done for one in offsets if one < first.floor)
    again.finish(set(offsets) - done)
    assert (again.floor, again.text(), again.n_open) == (offsets[-1] + 1, DoneOffsets(0).text(), 0)


def test_the_text_of_some_that_wait_before_many_that_are_done_is_short() -> None:
    done = DoneOffsets(0)
    for offset in range(100_000):
        done.deliver(offset)
    done.finish(one for one in range(100_000) if one % 1000)
    assert 0 < len(done.text()) < MOST_CHARACTERS
    assert done.span == 100_000


def test_a_text_of_someone_else_is_ignored() -> None:
    assert DoneOffsets(3, "their notes").deliver(3)
    assert DoneOffsets(3, "stepwell1:!").deliver(3)
