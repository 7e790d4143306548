"""What becomes of a graph by whether its rows depend on each other: refused, run one row at a time, or run together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Manifest
from stepwell_export.structure.rows import RowsVerdict, rows_of_step

if TYPE_CHECKING:
    import onnx

ROWS_DEPEND = "The rows of a batch depend on each other"
ROWS_FIX = (
    "What one stream is answered would depend on who is served with it. Let each row follow from itself alone: reduce, "
    "normalise and sort over other axes than that of the batch."
)


def mixed_rows(verdict: RowsVerdict) -> RefusedModelError:
    """Return the error for a graph whose rows depend on each other."""
    return RefusedModelError(f"{ROWS_DEPEND}: {verdict.why}.", fix=ROWS_FIX, layer=verdict.node)


def with_rows_judged(model: onnx.ModelProto, manifest: Manifest) -> Manifest:
    """Return a step graph's manifest, with one row a run where the operators do not show that rows are independent.

    Raises:
        RefusedModelError: They show that a row depends on others, of a graph that would run several; names the node.
    """
    verdict = rows_of_step(model, manifest).verdict
    if verdict.outcome == "independent":
        return manifest
    if verdict.outcome == "mixed" and manifest.batch.mode == "stack":
        raise mixed_rows(verdict)
    return manifest.model_copy(update={"batch": manifest.batch.single(verdict.why)})
