"""The release document: membership, schedules and what a trial's end means."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.addons.releases.document import (
    MAX_EARLIER,
    Ended,
    How,
    ReleaseDocument,
    ReleaseVersion,
    Trial,
    takes_part,
)
from stepwell.addons.releases.lookup import Releases

OLD, NEW, THIRD = (ReleaseVersion(n, f"version{n}".encode()) for n in (1, 2, 3))
percents = st.floats(0, 100)


def trial(**fields: object) -> Trial:
    """Return a trial of version 2 that started at second 1000."""
    defaults: dict[str, object] = {
        "old": OLD, "new": NEW, "revision": 1, "started_at": 1000.0, "mode": "ramp",
        "schedule": ((0.0, 5.0),), "scheduled_at": 1000.0, "salt": "s",
    }  # fmt: skip
    return Trial(**(defaults | fields))  # type: ignore[arg-type]


def document(**fields: object) -> ReleaseDocument:
    """Return a document whose current version is 1."""
    defaults: dict[str, object] = {"model": "m", "revision": 1, "current": OLD, "started_at": 1000.0}
    return ReleaseDocument(**(defaults | fields))  # type: ignore[arg-type]


@given(salt=st.text(), lower=percents, higher=percents)
def test_a_stream_in_a_share_is_in_every_larger_share(salt: str, lower: float, higher: float) -> None:
    lower, higher = sorted((lower, higher))

    for record in map(str, range(100)):
        assert takes_part(record, salt, lower) <= takes_part(record, salt, higher)


@given(record=st.text(), salt=st.text())
def test_all_streams_are_in_a_hundred_percent_and_none_in_zero(record: str, salt: str) -> None:
    assert takes_part(record, salt, 100.0)
    assert not takes_part(record, salt, 0.0)


@pytest.mark.parametrize("percent", [1.0, 5.0, 50.0])
def test_a_share_has_its_percentage_of_the_streams_within_four_sigma(percent: float) -> None:
    n, p = 20_000, percent / 100
    members = sum(takes_part(f"swl:1:{{t/m/{i}}}", "salt", percent) for i in range(n))

    assert abs(members - n * p) < 4 * (n * p * (1 - p)) ** 0.5


def test_another_salt_selects_other_streams() -> None:
    first = {i for i in range(1000) if takes_part(str(i), "a", 10.0)}
    second = {i for i in range(1000) if takes_part(str(i), "b", 10.0)}

    assert len(first & second) < 50


def test_a_schedule_is_the_last_point_whose_second_has_passed() -> None:
    ramp = trial(schedule=((10.0, 1.0), (600.0, 10.0), (3600.0, 100.0)), scheduled_at=2000.0)

    found = [ramp.percent_at(now) for now in (1999.0, 2009.9, 2010.0, 2599.0, 2600.0, 5600.0, 1e9)]

    assert found == [0.0, 0.0, 1.0, 1.0, 10.0, 100.0, 100.0]


def ended(how: How, at: float = 2000.0, **fields: object) -> Trial:
    """Return a trial that has ended."""
    return trial(ended=Ended(how, None, at), **fields)


def half_of(found: ReleaseDocument, *, moved_by: int = 1, now: float = 3000.0) -> bytes | None:
    """Return with which half a pair of versions 1 and 2 goes on."""
    return found.settled(OLD.fingerprint, NEW.fingerprint, moved_by, now)


@pytest.mark.parametrize(("how", "half"), [("promoted", NEW), ("aborted", OLD)])
def test_a_pair_goes_on_with_the_half_that_its_trials_end_selects(how: How, half: ReleaseVersion) -> None:
    assert half_of(document(trial=ended(how))) == half.fingerprint
    assert half_of(document(earlier=(ended(how),))) == half.fingerprint


def test_a_pair_of_an_aborted_trial_does_not_join_a_later_one_of_the_same_versions() -> None:
    again = document(trial=trial(revision=5), earlier=(ended("aborted", revision=1),))

    assert half_of(again, moved_by=2) == OLD.fingerprint
    assert half_of(again, moved_by=5) is None


@pytest.mark.parametrize(("current", "half"), [(OLD, OLD.fingerprint), (NEW, NEW.fingerprint), (THIRD, None)])
def test_of_a_pair_whose_trial_is_not_kept_any_more_the_half_that_is_current_goes_on(
    current: ReleaseVersion, half: bytes | None
) -> None:
    later = tuple(ended("aborted", revision=n) for n in range(30, 30 - MAX_EARLIER, -1))

    assert half_of(document(current=current, trial=trial(revision=40), earlier=later), moved_by=3) == half
    assert half_of(document(current=current, trial=trial(revision=40), earlier=later[1:]), moved_by=3) is None


def test_pairs_of_a_promotion_with_rollback_are_settled_once_another_trial_starts() -> None:
    later = trial(revision=5, old=NEW, new=THIRD)

    assert half_of(document(current=NEW, trial=later, earlier=(ended("promoted", rollback=True),))) == NEW.fingerprint


def test_streams_stay_after_another_version_was_pinned() -> None:
    assert document(current=OLD, trial=ended("promoted")).promoted_from(OLD.fingerprint) is None
    assert document(current=THIRD, trial=ended("promoted")).promoted_from(OLD.fingerprint) is None


def test_streams_that_slept_through_two_promotions_make_both_moves() -> None:
    first, second = ended("promoted"), ended("promoted", revision=3, old=NEW, new=THIRD)
    both = document(current=THIRD, trial=second, earlier=(first,))

    assert both.promoted_from(OLD.fingerprint) == first
    assert both.promoted_from(NEW.fingerprint) == second


def test_a_promotion_back_does_not_move_streams_in_a_circle() -> None:
    back = ended("promoted", revision=3, old=NEW, new=OLD)
    both = document(current=OLD, trial=back, earlier=(ended("promoted"),))

    assert both.promoted_from(OLD.fingerprint) is None
    assert both.promoted_from(NEW.fingerprint) == back


def test_a_document_is_decoded_as_it_was_encoded() -> None:
    stored = document(trial=trial(ended=Ended("aborted", "why", 2000.0)), formerly=(THIRD,))

    assert msgspec.json.decode(msgspec.json.encode(stored), type=ReleaseDocument) == stored


def test_the_lookup_counts_changes_and_corrects_its_clock() -> None:
    releases = Releases(clock=lambda: 100.0)
    releases.set_store_time(105.0)

    assert releases.current("m") is None
    assert releases.put("m", document())
    assert not releases.put("m", document())
    assert (releases.changes("m"), releases.now(), releases.current("m")) == (1, 105.0, document())
    assert releases.put("m", None)
    assert releases.current("m") is None
