"""How requests change the release document; over HTTP, the same is in `tests/api/test_releases.py`."""

from __future__ import annotations

from msgspec.structs import replace

from stepwell.addons.releases import document_changes
from stepwell.addons.releases.document import MAX_EARLIER, ReleaseDocument, ReleaseVersion
from stepwell.addons.releases.rollback import ROLLBACK_S

ONE, TWO, THREE = (ReleaseVersion(n, f"version{n}".encode()) for n in (1, 2, 3))
RAMP = document_changes.TrialOptions("ramp", ((0.0, 5.0),))
EMPTY = ReleaseDocument("m", 0, ONE, 0.0)


def tried(
    document: ReleaseDocument = EMPTY, candidate: ReleaseVersion = TWO, *, now: float = 1000.0
) -> ReleaseDocument:
    return document_changes.set_candidate(document, candidate, RAMP, now)


def test_each_change_has_the_next_revision() -> None:
    first = tried()
    second = document_changes.set_percent(first, ((0.0, 50.0),), 2000.0)
    third = document_changes.end(second, "promoted", None, 3000.0)

    assert [one.revision for one in (first, second, third)] == [1, 2, 3]
    assert third.started_at == 1000.0


def test_a_schedule_counts_from_the_change_that_brought_it() -> None:
    first = tried()
    later = document_changes.set_percent(first, ((0.0, 1.0), (10.0, 100.0)), 5000.0)

    assert later.trial is not None
    assert later.trial.started_at == 1000.0
    assert [later.trial.percent_at(now) for now in (5000.0, 5009.0, 5010.0)] == [1.0, 1.0, 100.0]


def test_trials_have_salts_of_their_own_and_keep_them() -> None:
    first, other = tried(), tried()
    again = document_changes.set_candidate(first, TWO, replace_options(mode="shadow"), 2000.0)

    assert first.trial is not None
    assert other.trial is not None
    assert again.trial is not None
    assert first.trial.salt != other.trial.salt
    assert again.trial.salt == first.trial.salt
    assert (again.trial.mode, again.trial.revision) == ("shadow", first.trial.revision)


def replace_options(**fields: object) -> document_changes.TrialOptions:
    return RAMP._replace(**fields)  # type: ignore[arg-type]


def test_the_ended_trial_is_kept_when_the_next_starts() -> None:
    promoted = document_changes.end(tried(), "promoted", "good", 2000.0)
    following = tried(promoted, THREE)

    assert following.earlier == (promoted.trial,)
    assert following.running is not None
    assert (following.running.old, following.running.new) == (TWO, THREE)
    assert following.formerly == (ONE,)


def test_a_document_keeps_a_limited_number_of_trials() -> None:
    document = EMPTY
    for i in range(3 * MAX_EARLIER):
        ended = tried(document, ReleaseVersion(i + 2, f"v{i:07}".encode()))
        document = document_changes.end(ended, "promoted", None, 2000.0)

    assert len(document.earlier) == MAX_EARLIER
    assert len(document.formerly) == MAX_EARLIER


def test_an_abort_within_an_hour_of_a_promotion_with_rollback_restores_the_old_version() -> None:
    promoted = document_changes.end(
        document_changes.set_candidate(EMPTY, TWO, replace_options(rollback=True), 1.0), "promoted", None, 2.0
    )
    aborted = document_changes.end(promoted, "aborted", None, 1.0 + ROLLBACK_S)

    assert aborted.current == ONE
    assert aborted.formerly == (TWO, ONE)


def test_an_abort_leaves_a_version_that_was_pinned_after_the_promotion() -> None:
    promoted = document_changes.end(
        document_changes.set_candidate(EMPTY, TWO, replace_options(rollback=True), 1.0), "promoted", None, 2.0
    )
    pinned = document_changes.pin(promoted, THREE, 3.0)

    assert document_changes.end(pinned, "aborted", None, 4.0).current == THREE


def test_an_end_that_was_reached_leaves_the_document_itself() -> None:
    promoted = document_changes.end(tried(), "promoted", "first", 2000.0)

    assert document_changes.end(promoted, "promoted", "again", 3000.0) is promoted


def test_a_version_that_was_current_only_because_it_is_the_highest_was_not_current_by_a_release() -> None:
    pinned = document_changes.pin(replace(EMPTY, current=THREE), ONE, 1.0)

    assert pinned.formerly == ()
