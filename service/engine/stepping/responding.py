"""`responding_versions`: which version has responded to each row of a batch, and whether it has changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from model_export.manifest import Array
from service.models.pair_state import pair_rows
from service.models.paired import PairedModel
from service.types import STARTS

if TYPE_CHECKING:
    from service.engine.stepping.queued import QueuedStep
    from service.models.served import ServedModel


class Responding(NamedTuple):
    """The versions that have responded to the rows of a batch.

    Attributes:
        versions: The number of each.
        fingerprints: The fingerprint of each, 8 bytes.
        changed: Whether each is another one than before.
    """

    versions: Sequence[int]
    fingerprints: Sequence[bytes]
    changed: Sequence[bool]

    def select(self, indices: Sequence[int]) -> Responding:
        """Return some of the rows."""
        return Responding(*([column[i] for i in indices] for column in self))  # type: ignore[arg-type]


def responding_versions(
    served: ServedModel, rows: Sequence[QueuedStep], before: Array, after: Array
) -> Responding | None:
    """Return the versions that have responded; None: that of the model, and no stream has changed its version.

    Args:
        served: The model that was run.
        rows: The rows.
        before: Their packed states before the run, `(rows, bytes)` uint8.
        after: Those after it.
    """
    if served.halves is None:
        fingerprint = served.fingerprint
        changed = [row.responded_before not in (b"", fingerprint) for row in rows]
        if not any(changed):
            return None
        return Responding([served.version] * len(rows), [fingerprint] * len(rows), changed)
    halves = [(half.version, half.fingerprint) for half in served.halves]
    which = pair_rows(after)["responded"].tolist()
    versions, fingerprints = zip(*(halves[i] for i in which), strict=True)
    previous = pair_rows(before)["responded"].tolist()
    changed = [
        _has_changed(row, fingerprint, halves[was][1])
        for row, fingerprint, was in zip(rows, fingerprints, previous, strict=True)
    ]
    return Responding(versions, fingerprints, changed)


def is_uniform(served: ServedModel, before: Array, after: Array) -> bool:
    """Whether the version of a model has responded to all rows, before the run and in it."""
    model = served.step_model
    if not isinstance(model, PairedModel) or model.mode == "shadow":
        return True
    return bool((pair_rows(before)["responded"] & pair_rows(after)["responded"]).all())


def _has_changed(row: QueuedStep, after: bytes, before: bytes) -> bool:
    if row.responded_before:
        return row.responded_before != after
    has_begun = (row.is_loaded and row.record is None) or row.timestep.lifecycle in STARTS
    return not has_begun and after != before
