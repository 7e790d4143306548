"""The changes of a release document, as functions from a document to the next one; they read no store and no model."""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from stepwell.addons.releases.bodies import Mode, Points, Take, bad_release
from stepwell.addons.releases.document import (
    MAX_EARLIER,
    Ended,
    Gate,
    How,
    ReleaseDocument,
    ReleaseVersion,
    Trial,
)
from stepwell.errors import ServiceError

_OTHER: Final[dict[How, How]] = {"promoted": "aborted", "aborted": "promoted"}


class TrialOptions(NamedTuple):
    """How a candidate is tried; UNSET: as it is in the running trial, else the default.

    Attributes:
        mode: See `Trial`, as for the others.
        schedule: The share that takes part.
        take: How the candidate's state is made.
        warm_steps: Timesteps before the candidate responds.
        existing: Whether streams take part that exist.
        rollback: Whether `abort` is possible after a promotion.
        salt: Selects the streams.
        gate: The limits; None: none.
    """

    mode: Mode
    schedule: Points
    take: Take | UnsetType = UNSET
    warm_steps: int | UnsetType = UNSET
    existing: bool | UnsetType = UNSET
    rollback: bool | UnsetType = UNSET
    salt: str | UnsetType = UNSET
    gate: Gate | UnsetType | None = UNSET


def check_revision(document: ReleaseDocument, revision: int | UnsetType) -> None:
    """Check that a document has the revision that a request names.

    Raises:
        ServiceError: `release_changed`, with the document's revision.
    """
    if revision is not UNSET and revision != document.revision:
        raise ServiceError(
            "release_changed",
            f"The release has revision {document.revision}; `revision` is {revision}.",
            fix="Read the release, then decide again.",
            revision=document.revision,
        )


def pin(document: ReleaseDocument, current: ReleaseVersion, now: float) -> ReleaseDocument:
    """Return the document with another version for new streams.

    Raises:
        ServiceError: `release_refused`: a candidate runs beside another version.
    """
    running = document.running
    if running is not None and current.fingerprint != document.current.fingerprint:
        raise _refused(
            f"Version {running.new.number} is tried beside version {document.current.number}; "
            f"`current` cannot become {current.number}.",
            "Promote or abort the release first.",
        )
    return _next(document, now, current=current)


def set_percent(document: ReleaseDocument, schedule: Points, now: float) -> ReleaseDocument:
    """Return the document with another share for its candidate.

    Raises:
        ServiceError: `bad_release`: no candidate runs.
    """
    running = document.running
    if running is None:
        bad_release("`percent` is the candidate's share, and the release has no candidate.", "Name the candidate.")
    return _next(document, now, trial=replace(running, schedule=schedule, scheduled_at=now))


def set_candidate(
    document: ReleaseDocument, candidate: ReleaseVersion, options: TrialOptions, now: float
) -> ReleaseDocument:
    """Return the document with a candidate: a new trial, or the running one of this candidate with other options.

    Raises:
        ServiceError: `bad_release`: the candidate is the current version, or the options do not belong together;
            `release_refused`: another candidate runs.
    """
    running, current = document.running, document.current
    if candidate.number == current.number or candidate.fingerprint == current.fingerprint:
        bad_release(
            f"The candidate, version {candidate.number}, is the current version"
            f"{'' if candidate.number == current.number else f' {current.number}: both are the same step graph'}.",
            "Name another version.",
        )
    if running is not None and running.new.fingerprint != candidate.fingerprint:
        problem = f"Version {running.new.number} is the candidate; {candidate.number} cannot be tried beside it."
        if running.new.number == candidate.number:
            problem = f"The file of version {candidate.number} was replaced since the release started."
        raise _refused(problem, "Promote or abort the release first.")
    revision = document.revision + 1
    before = running or Trial(
        old=current,
        new=candidate,
        revision=revision,
        started_at=now,
        mode=options.mode,
        schedule=options.schedule,
        scheduled_at=now,
        salt=secrets.token_urlsafe(9) if options.salt is UNSET else options.salt,
    )
    if options.salt is not UNSET and options.salt != before.salt:
        bad_release("`salt` differs from that of the running release, whose streams it has selected.", "Leave it out.")
    given = {name: value for name, value in options._asdict().items() if value is not UNSET}
    trial = replace(before, **given, scheduled_at=now)
    if trial.warm_steps and trial.take != "reset":
        bad_release(
            f"`warm_steps` is {trial.warm_steps} with `take` {trial.take}; it needs `reset`.",
            "Leave out `warm_steps`, or send `take`: `reset`.",
        )
    return _next(document, now, trial=trial)


def end(document: ReleaseDocument, how: How, why: str | None, now: float, *, by_gate: bool = False) -> ReleaseDocument:
    """Return the document after a promotion or an abort; the document itself if it has ended so before.

    Raises:
        ServiceError: `bad_release`: there is no release; `release_refused`: it has ended in the other way.
    """
    trial = document.trial
    if trial is None:
        bad_release(
            "The model has no release with a candidate.", "Start one with PUT, or with `stepwell release start`."
        )
    if trial.ended is not None and trial.ended.how == how:
        return document
    if trial.ended is not None and not (how == "aborted" and trial.keeps_pairs(now)):
        raise _refused(
            f"Version {trial.new.number} was {trial.ended.how}; it cannot be {how} any more.",
            "Start another release with PUT.",
        )
    current = trial.new
    if how == "aborted":  # after a promotion, another version may have been pinned
        current = trial.old if document.current.fingerprint == trial.new.fingerprint else document.current
    ended = Ended(how, why, now, document.revision + 1, by_gate)
    return _next(document, now, current=current, trial=replace(trial, ended=ended))


def _next(
    document: ReleaseDocument, now: float, *, current: ReleaseVersion | None = None, trial: Trial | None = None
) -> ReleaseDocument:
    """Return the next revision of a document with another current version or trial."""
    before = document.trial
    earlier, formerly = document.earlier, document.formerly
    if trial is not None and before is not None and before.revision != trial.revision:
        earlier = (before, *earlier)[:MAX_EARLIER]
    # Without a release, the highest version was current only because its file was there.
    if current is not None and current.fingerprint != document.current.fingerprint and document.started_at:
        formerly = (document.current, *(one for one in formerly if one != document.current))[:MAX_EARLIER]
    return replace(
        document,
        revision=document.revision + 1,
        started_at=document.started_at or now,
        current=current or document.current,
        trial=trial or before,
        earlier=earlier,
        formerly=formerly,
    )


def _refused(problem: str, fix: str) -> ServiceError:
    return ServiceError("release_refused", problem, fix=fix)
