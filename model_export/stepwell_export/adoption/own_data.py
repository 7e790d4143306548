"""`with_own_data`: runs own sequences through an adopted graph; their distributions become the manifest's reference."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from stepwell_export.adoption.verify_adopted import ITSELF, largest_difference
from stepwell_export.runtime.manifest import Manifest
from stepwell_export.runtime.psi import data_reference
from stepwell_export.runtime.step_model import StepModel, nearly_equal, stacked
from stepwell_export.verify.parity import USER
from stepwell_export.verify.runners import rows_alone, stepped
from stepwell_export.verify.samplers import read_user_data

_ROWS: Final = 64  # sequences that are run together
_ROWS_ALONE: Final = 3  # sequences that are also run alone


def with_own_data(graph: Path | bytes, manifest: Manifest, file: Path, notes: list[str]) -> Manifest:
    """Run own sequences step by step, with states as they are stored.

    Args:
        graph: The step graph.
        manifest: Its manifest.
        file: The sequences, an `.npz` file with an array `(N, T, *shape)` or `(T, *shape)` for each input.
        notes: What people should read is added here.

    Returns:
        The manifest with the distributions of the inputs and outputs; the rows run one at a time if rows that were run
        together did not equal rows alone.

    Raises:
        TensorError: The file cannot be read, or its arrays do not fit the inputs.
        ModelLoadError: The graph fails on them.
    """
    data = read_user_data(file, manifest)
    model = StepModel(graph, manifest)
    n_rows = len(next(iter(data.values())))
    batches = [{name: array[at : at + _ROWS] for name, array in data.items()} for at in range(0, n_rows, _ROWS)]
    outputs = stacked([stepped(model, batch)[0] for batch in batches])
    exact = [spec.name for spec in manifest.answered if spec.kind == "value"]
    notes += [
        f"output {name} is not finite (NaN or infinite) on {file.name}: such a step is refused when it is served"
        for name in exact
        if outputs[name].dtype.kind == "f" and not np.isfinite(outputs[name]).all()
    ]
    changes: dict[str, object] = {"reference": data_reference(manifest, data, outputs)}
    if model.batched:
        alone = rows_alone(model, {name: array[:_ROWS_ALONE] for name, array in data.items()})
        together = {name: outputs[name][:_ROWS_ALONE] for name in exact}
        if all(nearly_equal(together[name], alone[name]) for name in exact):
            changes |= _verified(manifest, [largest_difference(together[name], alone[name]) for name in exact])
        else:
            notes.append(f"rows of {file.name} run together do not equal rows run alone: it runs one row at a time")
            changes["batch"] = manifest.batch.model_copy(update={"mode": "single"})
            if manifest.verified is not None and manifest.verified.against == ITSELF:
                changes["verified"] = None
    return manifest.model_copy(update=changes)


def _verified(manifest: Manifest, differences: list[float]) -> dict[str, object]:
    """Return the report with the largest difference of the own sequences; empty if there is no report."""
    parity = manifest.verified
    if parity is None:
        return {}
    update = {"max_abs": max([parity.max_abs, *differences]), "sequences": [*parity.sequences, USER]}
    return {"verified": parity.model_copy(update=update)}
