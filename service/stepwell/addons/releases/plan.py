"""`ReleasePlan`: what steps a stream next, by its record and the release document. Pure.

    from                                              to                              the new state
    a version, in the share of the running trial      the pair, in the trial's mode   the old half as it is; the new
                                                                                      one by `take`
    a version, in the share, mode `switch`            the candidate                   by `take`
    the pair                                          the pair in another mode        both halves as they are
    the pair of a promoted trial                      the candidate                   the new half
    the pair of an aborted trial, or that has failed  the old version                 the old half
    a version from which a trial was promoted         that trial's candidate          by `take`

Anything else stays as it is. While a candidate still has to consume `warm_steps`, it is half of a pair in any mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from stepwell.addons.releases.document import ReleaseDocument, Trial
from stepwell.addons.releases.pair_state import Assignment, PairState, Standing

_MAX_MOVES: Final = 8  # of one stream at one step: it slept through several releases


class Move(NamedTuple):
    """One move of a stream.

    Attributes:
        assignment: Where it moves to.
        standing: What its record shows afterwards.
        taken_by: The trial by whose `take` the new version's state is made; None: the stored state is used.
    """

    assignment: Assignment
    standing: Standing
    taken_by: Trial | None = None


@dataclass(frozen=True, slots=True)
class ReleasePlan:
    """A release document at one time. A plan is replaced by another one when the document or the share changes.

    Attributes:
        document: The document.
        percent: Share of the running trial, 0 to 100.
        keeps_pairs: Whether pairs of the last trial stay pairs.
        now: Seconds since 1970, by the store's clock.
    """

    document: ReleaseDocument
    percent: float
    keeps_pairs: bool
    now: float

    @classmethod
    def at(cls, document: ReleaseDocument, now: float) -> ReleasePlan:
        """Return the plan of a document at a time, in seconds since 1970 by the store's clock."""
        running, trial = document.running, document.trial
        percent = 0.0 if running is None else running.percent_at(now)
        return cls(document, percent, trial is not None and trial.keeps_pairs(now), now)

    def is_valid(self, document: ReleaseDocument, now: float) -> bool:
        """Whether it is the plan of this document at this time."""
        if document is not self.document:
            return False
        trial = document.trial
        if trial is None:
            return True
        if trial.ended is None:
            return trial.percent_at(now) == self.percent
        return trial.keeps_pairs(now) == self.keeps_pairs

    def new_assignment(self, record: str) -> Assignment:
        """Return where a new stream begins.

        Args:
            record: Key of its record.
        """
        running = self.document.running
        if running is None or not running.takes_part(record, self.percent):
            return Assignment(self.document.current.fingerprint)
        if running.mode == "switch":
            return Assignment(running.new.fingerprint)
        return Assignment(running.old.fingerprint, running.new.fingerprint, running.mode)

    def new_standing(self, assignment: Assignment) -> Standing:
        """Return what the record of a stream that begins at an assignment shows before its first timestep."""
        running = self.document.running
        if running is None or assignment == Assignment(self.document.current.fingerprint):
            return Standing(assignment)
        if not assignment.new:  # on the candidate: an earlier promotion from that version does not move this stream
            return Standing(assignment, self.document.revision)
        return Standing(assignment, self.document.revision, pair=_new_pair(assignment, running))

    def may_move(self, version: bytes, record: str) -> bool:
        """Whether a stream of a version may move at its next step; False is certain.

        Args:
            version: Fingerprint of the version, 8 bytes.
            record: Key of its record.
        """
        running = self.document.running
        if running is not None and version == running.old.fingerprint and running.existing:
            return running.takes_part(record, self.percent)
        return self.document.promoted_from(version) is not None

    def moves(self, standing: Standing, record: str) -> list[Move]:
        """Return the moves of a stream at its next step; empty: it stays where it is.

        Args:
            standing: What its record shows.
            record: Key of its record.
        """
        moves: list[Move] = []
        while standing.moved_by <= self.document.revision and len(moves) < _MAX_MOVES:
            move = self._of_version(standing, record) if standing.pair is None else self._of_pair(standing.pair)
            if move is None:
                break
            moves.append(move)
            standing = move.standing
        return moves

    # ---------------------------------------------------------------- helpers

    def _of_version(self, standing: Standing, record: str) -> Move | None:
        version, document = standing.assignment.old, self.document
        promoted = document.promoted_from(version)
        if promoted is not None and promoted.ended is not None and standing.moved_by < promoted.ended.revision:
            return self._taken_over(promoted, "switch")
        running = document.running
        if running is None or version != running.old.fingerprint or not running.existing:
            return None
        if standing.has_left and standing.moved_by >= running.revision:
            return None
        return self._taken_over(running, running.mode) if running.takes_part(record, self.percent) else None

    def _of_pair(self, pair: PairState) -> Move | None:
        document = self.document
        if pair.failed:
            return self._to(Assignment(pair.old), has_left=True)
        half = document.settled(pair.old, pair.new, pair.trial, self.now)
        mode: str = pair.mode
        if half == pair.old:
            return self._to(Assignment(half))
        trial = document.trial
        if half is not None:
            mode = "switch"
        elif trial is not None and (trial.old.fingerprint, trial.new.fingerprint) == (pair.old, pair.new):
            if trial.ended is None:
                mode = trial.mode if trial.revision <= pair.trial else pair.mode
            elif trial.ended.how == "promoted":
                mode = "ramp"  # with `rollback`: the old half goes on beside the new one
        if mode == "switch":
            if not pair.warm_steps:
                return self._to(Assignment(pair.new))
            mode = "ramp"
        if mode == pair.mode:
            return None
        assignment = Assignment(pair.old, pair.new, "shadow" if mode == "shadow" else "ramp")
        return Move(assignment, Standing(assignment, document.revision, pair=pair._replace(mode=assignment.mode)))

    def _to(self, assignment: Assignment, *, has_left: bool = False) -> Move:
        return Move(assignment, Standing(assignment, self.document.revision, has_left))

    def _taken_over(self, trial: Trial, mode: str) -> Move:
        """Return the move of a stream of the old version to the pair, or to the candidate if there is to be no pair."""
        old, new = trial.old.fingerprint, trial.new.fingerprint
        if mode == "switch" and not (trial.take == "reset" and trial.warm_steps):
            assignment = Assignment(new)
            return Move(assignment, Standing(assignment, self.document.revision), trial)
        assignment = Assignment(old, new, "shadow" if mode == "shadow" else "ramp")
        return Move(assignment, Standing(assignment, self.document.revision, pair=_new_pair(assignment, trial)), trial)


def _new_pair(assignment: Assignment, trial: Trial) -> PairState:
    warm_steps = trial.warm_steps if trial.take == "reset" else 0
    return PairState(assignment.old, assignment.new, assignment.mode, trial.revision, warm_steps)
