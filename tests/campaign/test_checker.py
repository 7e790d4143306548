"""The checker detects steps that are lost, duplicated, swapped or wrong, and reports nothing for a correct stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from campaign.checker import check
from campaign.operations import Operation
from campaign.releases.folds import Folds
from tests.graphs import fold_reference

XS = [5, -3, 8, 8, 1]


def operations(xs: Sequence[int] = XS) -> list[Operation]:
    """Return acknowledged operations, one timestep a second."""
    ys = fold_reference(xs)
    return [Operation((x,), n, (y,), n, n + 0.5) for n, (x, y) in enumerate(zip(xs, ys, strict=True), 1)]


def violation_kinds(found: Sequence[Operation], final: int) -> list[str]:
    return [violation.kind for violation in check("s", found, final).violations]


def test_a_correct_stream_has_no_violations() -> None:
    assert violation_kinds(operations(), 5) == []
    assert violation_kinds([], 0) == []


def test_a_correct_stream_of_chunks_has_no_violations() -> None:
    ys = fold_reference(XS)
    chunks = [Operation((5, -3), 2, tuple(ys[:2]), 0, 1), Operation((8, 8, 1), 5, tuple(ys[2:]), 2, 3)]

    assert violation_kinds(chunks, 5) == []


def test_a_later_incarnation_continues_from_its_own_start() -> None:
    ys = fold_reference(XS)
    rest = [Operation((x,), n, (y,), n, n) for n, (x, y) in enumerate(zip(XS, ys, strict=True), 1)][3:]

    assert check("s", rest, 5, states=[Folds.of(1, ys[2])], start=3).violations == []


def test_one_wrong_value_is_detected() -> None:
    for at in range(5):
        found = operations()
        found[at] = dataclasses.replace(found[at], ys=(found[at].ys[0] ^ 1,))

        assert "wrong" in violation_kinds(found, 5), at


def test_an_unacknowledged_step_is_reported_as_duplicated() -> None:
    """The server applied the second input twice, so the later positions are shifted by one."""
    ys = fold_reference([5, -3, -3, 8])
    found = [Operation((x,), n, (ys[n - 1],), n, n) for x, n in ((5, 1), (-3, 2), (8, 4))]

    assert violation_kinds(found, 4) == ["doubled"]


def test_two_answers_for_one_position_are_reported_as_lost() -> None:
    found = operations([5, -3])
    other = Operation((7,), 2, tuple(fold_reference([5, 7])[1:]), 2, 3)

    assert violation_kinds([*found, other], 2) == ["lost"]


def test_swapped_inputs_are_detected() -> None:
    found = operations()
    found[1], found[2] = (dataclasses.replace(found[a], xs=found[b].xs) for a, b in ((1, 2), (2, 1)))

    assert set(violation_kinds(found, 5)) == {"wrong"}


@pytest.mark.parametrize(("final", "kind"), [(4, "lost"), (6, "doubled")])
def test_the_final_step_is_checked(final: int, kind: str) -> None:
    assert violation_kinds(operations(), final) == [kind]


def test_a_step_that_overtakes_an_earlier_answer_is_detected() -> None:
    found = operations()
    found[0] = dataclasses.replace(found[0], sent=10, answered=11)

    assert violation_kinds(found, 5) == ["out of order"]
