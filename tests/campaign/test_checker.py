"""The checker sees a step that was lost, doubled, swapped or made up, and nothing where all is well."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from campaign.checker import Operation, check
from tests.graphs import fold_reference

XS = [5, -3, 8, 8, 1]


def operations(xs: Sequence[int] = XS) -> list[Operation]:
    """What a client was told of one timestep after the other, one a second."""
    ys = fold_reference(xs)
    return [Operation((x,), n, (y,), n, n + 0.5) for n, (x, y) in enumerate(zip(xs, ys, strict=True), 1)]


def kinds(found: Sequence[Operation], final: int) -> list[str]:
    return [violation.kind for violation in check("s", found, final)]


def test_a_sound_life_has_no_violations() -> None:
    assert kinds(operations(), 5) == []
    assert kinds([], 0) == []


def test_a_sound_life_of_chunks_has_no_violations() -> None:
    ys = fold_reference(XS)
    chunks = [Operation((5, -3), 2, tuple(ys[:2]), 0, 1), Operation((8, 8, 1), 5, tuple(ys[2:]), 2, 3)]

    assert kinds(chunks, 5) == []


def test_a_later_life_goes_on_from_its_own_beginning() -> None:
    ys = fold_reference(XS)
    rest = [Operation((x,), n, (y,), n, n) for n, (x, y) in enumerate(zip(XS, ys, strict=True), 1)][3:]

    assert check("s", rest, 5, value=ys[2], start=3) == []


@pytest.mark.parametrize("at", range(5))
def test_one_wrong_value_is_seen(at: int) -> None:
    found = operations()
    found[at] = dataclasses.replace(found[at], ys=(found[at].ys[0] ^ 1,))

    assert "wrong" in kinds(found, 5)


def test_a_step_that_nobody_was_told_of_is_a_doubled_one() -> None:
    """The server took the second input twice, so the others stand one further."""
    ys = fold_reference([5, -3, -3, 8])
    found = [Operation((x,), n, (ys[n - 1],), n, n) for x, n in ((5, 1), (-3, 2), (8, 4))]

    assert kinds(found, 4) == ["doubled"]


def test_two_answers_for_one_position_are_a_lost_one() -> None:
    found = operations([5, -3])
    other = Operation((7,), 2, tuple(fold_reference([5, 7])[1:]), 2, 3)

    assert kinds([*found, other], 2) == ["lost"]


def test_swapped_inputs_are_seen() -> None:
    found = operations()
    found[1], found[2] = (dataclasses.replace(found[a], xs=found[b].xs) for a, b in ((1, 2), (2, 1)))

    assert set(kinds(found, 5)) == {"wrong"}


@pytest.mark.parametrize(("final", "kind"), [(4, "lost"), (6, "doubled")])
def test_where_the_stream_stands_at_last_counts(final: int, kind: str) -> None:
    assert kinds(operations(), final) == [kind]


def test_a_step_that_overtakes_an_earlier_answer_is_seen() -> None:
    found = operations()
    found[0] = dataclasses.replace(found[0], sent=10, answered=11)

    assert kinds(found, 5) == ["out of order"]
