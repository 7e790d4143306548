"""`ReleaseDocument`: which versions of a model serve its streams; one JSON value per model, for all tenants.

A document without a trial names the version of new streams (`current`). A *trial* is a candidate beside the current
version, from the PUT that starts it until it is promoted or aborted. The last trial stays in the document after its
end, because its streams move at their next step, which may be much later; older ones are kept as `EndedTrial`.

    document.trial      the running trial, or the last one; None: there was none
    document.running    the trial, if it has not ended
    document.settled    which of its two halves a pair of an ended trial goes on with

What a stored record becomes at its next step, from its fingerprint `f`:

    f is `running.old`, and `running.takes_part(record key, percent)`   a pair (`switch`: the candidate), if `existing`
    f is `trial.old`, `trial.moves_all`                                 the new version, by `take`
    f is the pair of a trial that has ended                             `settled(old, new)`, unless `keeps_pairs(now)`
    anything else                                                       it stays

A new stream starts on `current`; inside the share of a running trial, as a pair (`switch`: on the candidate).
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

from msgspec import Struct

Mode = Literal["shadow", "ramp", "switch"]
Take = Literal["keep", "translate", "reset"]
How = Literal["promoted", "aborted"]

ROLLBACK_S = 3600.0
"""Seconds after a promotion in which `abort` still restores the old version, if the release has `rollback`."""

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
        max_abs: Largest absolute difference, by output.
        max_disagree: Share, 0 to 1, of timesteps whose arg max differs.
        max_non_finite: Timesteps with a non-finite prediction or state of the candidate.
        max_lost: Streams that left the trial because the candidate failed, in `shadow` or in `ramp`.
        max_run_ratio: Run time of the candidate, in run times of the current version.
    """

    min_compared: int = 1000
    max_abs: dict[str, float] = {}
    max_disagree: float | None = None
    max_non_finite: int | None = None
    max_lost: int | None = None
    max_run_ratio: float | None = None


class Ended(Struct, frozen=True):
    """The end of a trial.

    Attributes:
        how: Promoted or aborted.
        why: The reason, from the request or from the gate; None: no reason was given.
        at: Seconds since 1970, by the store's clock.
    """

    how: How
    why: str | None
    at: float


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


class EndedTrial(Struct, frozen=True):
    """What remains of an earlier trial: where its pairs go.

    Attributes:
        old: Fingerprint of the old version, 8 bytes.
        new: Fingerprint of the candidate, 8 bytes.
        how: How it ended.
    """

    old: bytes
    new: bytes
    how: How


class ReleaseDocument(Struct, frozen=True):
    """Which versions of a model serve; the newest revision holds.

    Attributes:
        model: The model's name.
        revision: Grows by one with each change; a document that is stored has at least 1.
        current: The version of new streams.
        started_at: When this document was first written; seconds since 1970, by the store's clock.
        trial: The running trial, or the last one; None: there was none.
        earlier: Trials before `trial`, the newest first.
        formerly: Fingerprints of versions that were current before, the newest first.
    """

    model: str
    revision: int
    current: ReleaseVersion
    started_at: float
    trial: Trial | None = None
    earlier: tuple[EndedTrial, ...] = ()
    formerly: tuple[bytes, ...] = ()

    @property
    def running(self) -> Trial | None:
        """The trial, if it has not ended."""
        return self.trial if self.trial is not None and self.trial.ended is None else None

    @property
    def moves_all(self) -> bool:
        """Whether every stream of `trial.old` moves to `trial.new`: it was promoted, and is the current version."""
        trial = self.trial
        if trial is None or trial.ended is None or not trial.existing:
            return False
        return trial.ended.how == "promoted" and self.current.fingerprint == trial.new.fingerprint

    def settled(self, old: bytes, new: bytes) -> bytes | None:
        """Return the fingerprint of the half with which a pair of these two versions goes on once its trial has ended.

        Args:
            old: Fingerprint of the pair's old version, 8 bytes.
            new: Fingerprint of its candidate, 8 bytes.

        Returns:
            `old` or `new`; None: its trial runs, or is not in this document.
        """
        trial = self.trial
        if trial is not None and (trial.old.fingerprint, trial.new.fingerprint) == (old, new):
            if trial.ended is None:
                return None
            return new if trial.ended.how == "promoted" else old
        for ended in self.earlier:
            if (ended.old, ended.new) == (old, new):
                return new if ended.how == "promoted" else old
        return None


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
