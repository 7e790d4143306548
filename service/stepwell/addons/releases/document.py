"""`ReleaseDocument`: which versions of a model serve its streams; one JSON value per model, for all tenants.

A document without a trial names the version of new streams (`current`). A *trial* is a candidate beside the current
version, from the PUT that starts it until it is promoted or aborted. Trials stay in the document after their end,
because their streams move at their next step, which may be much later.

    document.trial      the running trial, or the last one; None: there was none
    document.running    the trial, if it has not ended

What a stored record becomes at its next step, from its fingerprint `f` and the revision that moved it last:

    f is the pair of a trial            the half `settled(old, new, moved_by)`; None: it stays a pair
    f is a version                      `promoted_from(f)`: the trial whose promotion moves it to `new`, by `take`
    f is `running.old`, with `existing` and `running.takes_part(record key, percent)`
                                        a pair (`switch`: the candidate)
    anything else                       it stays

A new stream starts on `current`; inside the share of a running trial, as a pair (`switch`: on the candidate).
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

from msgspec import Struct

from stepwell.addons.releases.rollback import ROLLBACK_S

Mode = Literal["shadow", "ramp", "switch"]
Take = Literal["keep", "translate", "reset"]
How = Literal["promoted", "aborted"]

MAX_EARLIER = 16
"""Ended trials that a document has. Streams that sleep for longer keep their version until they are moved by hand; of
their pairs, the half that is current continues."""

_HASHES = 2.0**64


class ReleaseVersion(Struct, frozen=True):
    """A version of a model as a release names it; replicas whose files differ agree by the fingerprint.

    Attributes:
        number: The version, from 1.
        fingerprint: Fingerprint of its step graph, 8 bytes.
    """

    number: int
    fingerprint: bytes


class Gate(Struct, frozen=True):
    """The limits that end a trial by itself; a limit is broken by a greater value. None, or not there: no limit.

    Attributes:
        min_compared: Compared timesteps before the limits are judged.
        max_abs: Largest absolute difference, by output; or, by output, the largest one of each label.
        max_disagree: Share, 0 to 1, of timesteps whose arg max differs.
        max_non_finite: Timesteps with a non-finite prediction or state of the candidate.
        max_lost: Streams that left the trial because the candidate failed, in `shadow` or in `ramp`.
        max_run_ratio: Run time of the candidate, in run times of the current version.
        max_error_ratio: Error of the candidate against the truth, in errors of the current version, of the worst label;
            broken only if the whole 95 % interval over streams is above it.
    """

    min_compared: int = 1000
    max_abs: dict[str, float | dict[str, float]] = {}
    max_disagree: float | None = None
    max_non_finite: int | None = None
    max_lost: int | None = None
    max_run_ratio: float | None = None
    max_error_ratio: float | None = None


class Ended(Struct, frozen=True):
    """The end of a trial.

    Attributes:
        how: Promoted or aborted.
        why: The reason, from the request or from the gate; None: no reason was given.
        at: Seconds since 1970, by the store's clock.
        revision: Revision of the document that it made; it moves no stream that was moved by that revision or later.
        by_gate: A broken limit of the gate has ended it, not a request.
    """

    how: How
    why: str | None
    at: float
    revision: int = 0
    by_gate: bool = False


class Trial(Struct, frozen=True):
    """One candidate beside the current version.

    Attributes:
        old: The version that was current when the trial started.
        new: The candidate.
        revision: Revision of the PUT that started the trial; it identifies the trial, and its counts in the store.
        started_at: When it started; seconds since 1970, by the store's clock.
        mode: Which version responds: `shadow` the old one, `ramp` the new one; `switch` moves streams without a pair.
        schedule: `(seconds, percent)`, ascending: from so many seconds after `scheduled_at`, this share takes part.
        scheduled_at: Time of the PUT that brought the schedule.
        take: How the candidate's state is made from that of the old version.
        warm_steps: With `reset`: timesteps that the candidate consumes before it responds.
        existing: Whether streams take part that were there before the trial.
        translation: With `translate`: digest of the graph that translates the states, 8 bytes; see `Translations`.
        rollback: Whether pairs are kept for `ROLLBACK_S` after a promotion, so that it can be aborted.
        salt: Selects which streams take part first.
        gate: The limits; None: it is ended by a request only.
        ended: Its end; None while it runs.
    """

    old: ReleaseVersion
    new: ReleaseVersion
    revision: int
    started_at: float
    mode: Mode
    schedule: tuple[tuple[float, float], ...]
    scheduled_at: float
    take: Take = "keep"
    warm_steps: int = 0
    existing: bool = True
    rollback: bool = False
    salt: str = ""
    gate: Gate | None = None
    ended: Ended | None = None
    translation: bytes = b""

    def percent_at(self, now: float) -> float:
        """Return the share in force, 0 to 100: that of the last point whose second has passed.

        Args:
            now: Seconds since 1970, by the store's clock: `Releases.now`.
        """
        elapsed, percent = now - self.scheduled_at, 0.0
        for seconds, share in self.schedule:
            if seconds > elapsed:
                break
            percent = share
        return percent

    def takes_part(self, record: str, percent: float) -> bool:
        """Whether a stream is in this share of the trial; see the function `takes_part`."""
        return takes_part(record, self.salt, percent)

    def keeps_pairs(self, now: float) -> bool:
        """Whether pairs stay pairs: the trial runs, or it was promoted with `rollback` less than an hour ago."""
        if self.ended is None:
            return True
        return self.rollback and self.ended.how == "promoted" and now < self.ended.at + ROLLBACK_S


class ReleaseDocument(Struct, frozen=True):
    """Which versions of a model serve; the newest revision holds.

    Attributes:
        model: The model's name.
        revision: Grows by one with each change; a document that is stored has at least 1.
        current: The version of new streams.
        started_at: When this document was first written; seconds since 1970, by the store's clock.
        trial: The running trial, or the last one; None: there was none.
        earlier: The trials before `trial`, at most `MAX_EARLIER`, the newest first.
        formerly: The versions that were current before, at most `MAX_EARLIER`, the newest first.
    """

    model: str
    revision: int
    current: ReleaseVersion
    started_at: float
    trial: Trial | None = None
    earlier: tuple[Trial, ...] = ()
    formerly: tuple[ReleaseVersion, ...] = ()

    @property
    def running(self) -> Trial | None:
        """The trial, if it has not ended."""
        return self.trial if self.trial is not None and self.trial.ended is None else None

    @property
    def moving(self) -> list[Trial]:
        """The trials by which streams of an older version may still move: the running one, and those promoted."""
        return [trial for trial in self._trials if trial.ended is None or trial.ended.how == "promoted"]

    def translation(self, old: bytes, new: bytes) -> bytes | None:
        """Return the digest of the graph by which streams move between two versions; None: they do not.

        Args:
            old: Fingerprint of the older version, 8 bytes.
            new: Fingerprint of the newer one, 8 bytes.
        """
        found = (one.translation for one in self.moving if (one.old.fingerprint, one.new.fingerprint) == (old, new))
        return next(filter(None, found), None)

    def settled(self, old: bytes, new: bytes, moved_by: int, now: float) -> bytes | None:
        """Return the fingerprint of the half with which a pair goes on, once its trial has ended.

        Args:
            old: Fingerprint of the pair's old version, 8 bytes.
            new: Fingerprint of its candidate, 8 bytes.
            moved_by: Revision of the document by which the stream became this pair; it identifies the trial.
            now: Seconds since 1970, by the store's clock: `Releases.now`.

        Returns:
            `old` or `new`; None: the stream stays a pair, because the trial runs, was promoted with `rollback` less
            than an hour ago, or no trial of these versions is one of this document. Of a trial that the document does
            not keep any more, the half that is current; else that of the newest trial of these versions.
        """
        of_pair = [one for one in self._trials if (one.old.fingerprint, one.new.fingerprint) == (old, new)]
        trial = next((one for one in of_pair if one.revision <= moved_by), None)
        if trial is None:
            half = self._half_without_trial(old, new)
            if half is not None or not of_pair:
                return half
            trial = of_pair[0]  # the document in which the pair's own trial was is lost
        if trial.ended is None:
            return None
        if trial == self.trial and trial.keeps_pairs(now):  # once another trial starts, no abort can follow
            return None
        return new if trial.ended.how == "promoted" else old

    def promoted_from(self, fingerprint: bytes) -> Trial | None:
        """Return the promoted trial that moves the streams of a version to `Trial.new`; None: they stay.

        Streams move only towards the current version: after another version was pinned, they stay.
        """
        moves: dict[bytes, Trial] = {}
        for trial in self._trials:
            if trial.ended is not None and trial.ended.how == "promoted":
                moves.setdefault(trial.old.fingerprint, trial)
        reached = fingerprint
        for _ in moves:
            if reached == self.current.fingerprint or reached not in moves or not moves[reached].existing:
                break
            reached = moves[reached].new.fingerprint
        is_towards_current = reached == self.current.fingerprint != fingerprint
        return moves[fingerprint] if is_towards_current else None

    def _half_without_trial(self, old: bytes, new: bytes) -> bytes | None:
        """Return the half of a pair whose trial ended so long ago that the document does not keep it; None: neither."""
        current = self.current.fingerprint
        return current if len(self.earlier) == MAX_EARLIER and current in {old, new} else None

    @property
    def _trials(self) -> tuple[Trial, ...]:
        """All trials, the newest first."""
        return self.earlier if self.trial is None else (self.trial, *self.earlier)


def takes_part(record: str, salt: str, percent: float) -> bool:
    """Whether a stream is in the share of `percent`: monotone in `percent`, and the same in every replica.

    Args:
        record: The key of the stream's record, which has its tenant, model and stream id.
        salt: The trial's salt.
        percent: 0 (no stream) to 100 (every stream).
    """
    if percent >= 100.0:
        return True
    digest = hashlib.blake2b(f"{salt}\0{record}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < math.floor(percent / 100.0 * _HASHES)
