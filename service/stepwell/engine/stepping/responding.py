"""`responding_versions`: which version has responded to each row of a batch, and whether it has changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from stepwell.models.pair_state import pair_rows
from stepwell.models.paired import PairedModel
from stepwell.types import STARTS
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.engine.stepping.queued import QueuedStep
    from stepwell.engine.stepping.record_loader import Records
    from stepwell.models.paired import Beside
    from stepwell.models.served import ServedModel


class Responding(NamedTuple):
    """The versions that have responded to the rows of a batch.

    Attributes:
        versions: The number of each; in a chunk, of the one that has responded to its last timestep.
        fingerprints: The fingerprint of each, 8 bytes.
        changed: Whether each is another one than before.
        by_timestep: For each row of several versions, the number of the one that has responded to each timestep; empty
            for all others.
    """

    versions: Sequence[int]
    fingerprints: Sequence[bytes]
    changed: Sequence[bool]
    by_timestep: Sequence[tuple[int, ...]]

    def select(self, indices: Sequence[int]) -> Responding:
        """Return some of the rows."""
        return Responding(*([column[i] for i in indices] for column in self))  # type: ignore[arg-type]


def responding_versions(
    served: ServedModel, records: Records, after: Array, beside: Beside | None
) -> Responding | None:
    """Return the versions that have responded; None: that of the model, and no stream has changed its version.

    Args:
        served: The model that was run.
        records: The records before the run.
        after: The packed states after it, `(rows, bytes)` uint8.
        beside: Of a pair, what the run returned beside the predictions.
    """
    n, objects = len(records.at), records.batch.rows
    if served.halves is None and not any([row.responded_before for row in objects.values()]):  # noqa: C419 - see all_finite
        return None
    rows = [objects.get(i) for i in records.at] if objects else [None] * n
    if served.halves is None:
        fingerprint = served.fingerprint
        changed = [row is not None and row.responded_before not in (b"", fingerprint) for row in rows]
        if not any(changed):
            return None
        return Responding([served.version] * n, [fingerprint] * n, changed, [()] * n)
    if not objects and _is_uniform(served, records.states, after):
        return None
    halves = [(half.version, half.fingerprint) for half in served.halves]
    which = pair_rows(after)["responded"].tolist()
    versions, fingerprints = zip(*(halves[i] for i in which), strict=True)
    previous = pair_rows(records.states)["responded"].tolist()
    changed = [
        _has_changed(row, fingerprint, halves[was][1])
        for row, fingerprint, was in zip(rows, fingerprints, previous, strict=True)
    ]
    return Responding(versions, fingerprints, changed, _by_timestep(served, versions, beside))


def _by_timestep(served: ServedModel, versions: Sequence[int], beside: Beside | None) -> Sequence[tuple[int, ...]]:
    """Return `Responding.by_timestep` of a pair: a candidate that becomes warm in a chunk responds to its end only."""
    if beside is None or served.halves is None or served.version == served.halves[0].version:
        return [()] * len(versions)
    old, new = (half.version for half in served.halves)
    compared: list[list[bool]] = beside.compared.tolist()
    return [tuple([new if by_new else old for by_new in row]) if any(row) and not all(row) else () for row in compared]


def _is_uniform(served: ServedModel, before: Array, after: Array) -> bool:
    """Whether the version of a model has responded to all rows, before the run and in it."""
    model = served.step_model
    if not isinstance(model, PairedModel) or model.mode == "shadow":
        return True
    return bool((pair_rows(before)["responded"] & pair_rows(after)["responded"]).all())


def _has_changed(row: QueuedStep | None, after: bytes, before: bytes) -> bool:
    if row is None:
        return after != before
    if row.responded_before:
        return row.responded_before != after
    return not (row.creates or row.timestep.lifecycle in STARTS) and after != before
