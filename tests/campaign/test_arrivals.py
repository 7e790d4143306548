"""The checker of the roads accepts what docs/connecting.md promises, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from campaign.roads.arrivals import Arrivals
from campaign.roads.broken import wrong_letters
from campaign.roads.history import Shown, time_left
from campaign.roads.road import Origin, Prediction
from tests.graphs import fold_reference

XS = {"a": [1, 2, 3], "b": [4, 5, 6]}
EXPECTED = np.array([fold_reference(xs) for xs in XS.values()])


def of(stream: str, step: int, *, more: int = 0, at: int | None = None) -> Prediction:
    y = int(EXPECTED[list(XS).index(stream), step - 1]) + more
    return Prediction(stream, step, {"y": [y]}, Origin("log", step * 10 if at is None else at))


def after(found: Iterable[Prediction], *, may_double: bool = True) -> Arrivals:
    arrivals = Arrivals(list(XS), EXPECTED, may_double=may_double)
    for one in found:
        arrivals.add(one)
    return arrivals


def test_streams_in_any_interleaving_are_complete_once_each_step_was_there() -> None:
    arrivals = after(of(stream, step) for step in (1, 2, 3) for stream in ("b", "a"))

    assert arrivals.is_complete
    assert (arrivals.problems, arrivals.missing(), arrivals.doubles) == ([], [], 0)


def test_a_part_that_is_written_again_counts_as_doubles() -> None:
    arrivals = after([of("a", 1), of("a", 2), of("a", 1), of("a", 2), of("a", 3)])

    assert (arrivals.problems, arrivals.doubles) == ([], 2)
    assert arrivals.missing() == ["b: steps end at 0 of 3"]


@pytest.mark.parametrize(
    ("found", "may_double"),
    [
        ([of("a", 1), of("a", 1)], False),  # a double where none may be
        ([of("a", 1), of("a", 3)], True),  # lost
        ([of("a", 2), of("a", 1)], True),  # out of order
        ([of("a", 1, more=1)], True),  # a wrong value
        ([of("a", 1), of("a", 2), of("a", 1), of("a", 3)], True),  # the double part ends in the middle
        ([of("a", 1), of("a", 1, at=11)], True),  # the same step from another message
    ],
)
def test_anything_else_is_a_problem(found: list[Prediction], may_double: bool) -> None:
    assert after(found, may_double=may_double).problems


def test_each_broken_message_needs_one_dead_letter_with_its_code() -> None:
    letters = [{"message": f'{{"tag": {tag}, "x": 1}}', "code": "bad_json", "reason": "why"} for tag in (0, 1, 1)]

    assert wrong_letters(letters[:2], {0: "bad_json", 1: "bad_json"}) == []
    assert len(wrong_letters(letters, {0: "bad_json", 1: "bad_input", 2: "bad_json"})) == 3


def test_the_time_left_is_compared_with_the_time_that_it_took() -> None:
    shown = [Shown(0.0, 5, None), Shown(1.0, 30, 9), Shown(5.0, 60, 4)]

    assert time_left(shown, 100, ended=11.0) == [
        {"done": 0.1, "shown_s": 9, "was_s": 10.0},
        {"done": 0.25, "shown_s": 9, "was_s": 10.0},
        {"done": 0.5, "shown_s": 4, "was_s": 6.0},
    ]
