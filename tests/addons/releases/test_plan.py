"""The table of moves, where a release with two replicas and streams would be slow: time, revisions, failures."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from stepwell.addons.releases.document import Ended, ReleaseDocument, ReleaseVersion, Trial
from stepwell.addons.releases.pair_state import Assignment, PairState, Standing
from stepwell.addons.releases.plan import ReleasePlan
from stepwell.addons.releases.rollback import ROLLBACK_S

OLD, NEW, OTHER = (ReleaseVersion(n, bytes([n]) * 8) for n in (1, 2, 3))
OF_OLD, OF_NEW = Standing(Assignment(OLD.fingerprint)), Standing(Assignment(NEW.fingerprint))
START, END = 3, 5  # revisions


def plan(at: float = 0.0, *, current: ReleaseVersion = OLD, revision: int = START, **trial: Any) -> ReleasePlan:
    """Return the plan of a release of `NEW` at a time; the trial started at 0."""
    fields: dict[str, Any] = {"mode": "ramp", "schedule": ((0.0, 100.0),), "salt": "s", **trial}
    document = ReleaseDocument("m", revision, current, 0.0, Trial(OLD, NEW, START, 0.0, scheduled_at=0.0, **fields))
    return ReleasePlan.at(document, at)


def ended(how: str, at: float = 0.0, **trial: Any) -> ReleasePlan:
    """Return the plan of the release after it has ended at 0."""
    current = NEW if how == "promoted" else OLD
    return plan(at, current=current, revision=END, ended=Ended(how, None, 0.0, END), **trial)  # type: ignore[arg-type]


def pair(mode: str = "ramp", *, moved_by: int = START, **state: Any) -> Standing:
    """Return what the record of a pair shows."""
    halves = PairState(OLD.fingerprint, NEW.fingerprint, mode, START, **state)  # type: ignore[arg-type]
    return Standing(Assignment(halves.old, halves.new, halves.mode), moved_by, pair=halves)


def assignments(found: ReleasePlan, standing: Standing) -> list[Assignment]:
    return [move.assignment for move in found.moves(standing, "swl:1:{t/m/s}")]


@pytest.mark.parametrize("standing", [OF_OLD, pair("shadow"), pair("ramp")])
def test_a_worker_with_an_older_document_moves_nothing(standing: Standing) -> None:
    newer = standing._replace(moved_by=END + 1)

    assert [assignments(found, newer) for found in (plan(), ended("promoted"), ended("aborted"))] == [[]] * 3


def test_pairs_of_a_promotion_with_rollback_are_kept_for_an_hour_and_the_candidate_responds() -> None:
    within, later = (ended("promoted", at, rollback=True) for at in (ROLLBACK_S - 1, ROLLBACK_S))

    assert assignments(within, pair("ramp")) == []
    assert assignments(within, pair("shadow")) == [Assignment(OLD.fingerprint, NEW.fingerprint, "ramp")]
    assert assignments(later, pair("ramp")) == [Assignment(NEW.fingerprint)]
    assert not within.is_valid(within.document, ROLLBACK_S)


def test_a_stream_that_has_left_takes_no_part_in_this_trial_but_follows_its_promotion() -> None:
    left = OF_OLD.left(START)

    assert assignments(plan(), left) == []
    assert assignments(ended("promoted"), left) == [Assignment(NEW.fingerprint)]
    assert assignments(plan(), pair(failed=True)) == [Assignment(OLD.fingerprint)]


def test_a_stream_that_was_moved_by_hand_after_a_promotion_stays() -> None:
    assert assignments(ended("promoted"), OF_OLD.left(END)) == []


def test_a_candidate_that_is_not_warm_stays_half_of_a_pair_in_every_mode() -> None:
    warming = pair("ramp", warm_steps=2)

    assert assignments(plan(mode="switch", take="reset", warm_steps=4), warming) == []
    assert assignments(ended("promoted"), warming) == []
    assert assignments(plan(mode="switch"), pair("ramp")) == [Assignment(NEW.fingerprint)]
    assert assignments(plan(mode="switch", take="reset", warm_steps=4), OF_OLD) == [
        Assignment(OLD.fingerprint, NEW.fingerprint, "ramp")
    ]


def test_a_smaller_share_takes_no_pair_back_and_an_aborted_switch_no_moved_stream() -> None:
    assert assignments(plan(schedule=((0.0, 0.0),)), pair("ramp")) == []
    assert assignments(plan(schedule=((0.0, 0.0),)), OF_OLD) == []
    assert assignments(ended("aborted", mode="switch"), OF_NEW) == []


def test_a_stream_that_began_on_a_candidate_stays_after_the_abort_though_that_version_was_once_left() -> None:
    back = Trial(NEW, OLD, 1, 0.0, mode="ramp", schedule=((0.0, 100.0),), scheduled_at=0.0, salt="s")
    back = replace(back, ended=Ended("promoted", None, 0.0, 2))
    switching, aborted = (
        ReleasePlan.at(replace(found.document, earlier=(back,)), 0.0)
        for found in (plan(mode="switch"), ended("aborted", mode="switch"))
    )
    began = switching.new_standing(switching.new_assignment("swl:1:{t/m/s}"))

    assert began.assignment == Assignment(NEW.fingerprint)
    assert assignments(aborted, began) == []


def test_the_share_follows_the_schedule_by_the_stores_clock() -> None:
    schedule = ((0.0, 0.0), (10.0, 100.0))
    before, after = (plan(at, schedule=schedule) for at in (9.0, 10.0))

    assert (assignments(before, OF_OLD), len(assignments(after, OF_OLD))) == ([], 1)
    assert before.is_valid(before.document, 9.5)
    assert not before.is_valid(before.document, 10.0)


def test_streams_of_other_versions_stay() -> None:
    other = Standing(Assignment(OTHER.fingerprint))

    assert [assignments(found, other) for found in (plan(), ended("promoted"), ended("aborted"))] == [[]] * 3
