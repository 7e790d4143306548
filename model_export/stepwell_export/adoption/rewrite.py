"""Rewrites a graph that was adopted into a file of its own, and proves that it still does the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from stepwell_export.adoption.verify_adopted import check_equal, report_comparison, run_chunk
from stepwell_export.graph.inline_window import fold_context
from stepwell_export.graph.onnx_file import read_model
from stepwell_export.row_axis import batchify
from stepwell_export.runtime.errors import ParityError, UnclearModelError
from stepwell_export.runtime.manifest import METADATA_KEY, Array, Manifest
from stepwell_export.runtime.step_model import StepModel, random_rows

Change = Literal["fold-context", "batchify"]

_ROWS = (1, 2, 3, 17)
"""Rows that are compared: those of the probe, and more, for which a graph could be another one."""


def rewrite(
    path: Path, manifest: Manifest, changes: Sequence[Change], notes: list[str], *, steps: int = 100
) -> tuple[bytes, Manifest]:
    """Return a changed model, proven to do the same; writes nothing.

    Args:
        path: The ONNX file.
        manifest: Its manifest.
        changes: What to change.
        notes: What people should read is added here.
        steps: Timesteps of the sequences that both are compared on.

    Returns:
        The ONNX file's bytes without manifest, and the manifest with the report of the comparison.

    Raises:
        UnclearModelError: There is nothing to change.
        RefusedModelError: The change cannot be made; names what is in the way.
        ParityError: The changed graph answers otherwise.
    """
    model, described = read_model(path, weights=True), manifest
    for entry in [entry for entry in model.metadata_props if entry.key == METADATA_KEY]:
        model.metadata_props.remove(entry)
    before = StepModel(path, manifest)
    if "fold-context" in changes:
        if not manifest.windows:
            raise UnclearModelError(
                f"{path} is described without a window; expected one to fold into the graph.",
                fix="Set how much past input the graph takes: `--window INPUT=LENGTH`, or leave out `--fold-context`.",
            )
        model, described = fold_context(model, described)
    if "batchify" in changes:
        if before.batched:
            raise UnclearModelError(f"{path} runs rows together already.", fix="Leave out `--batchify`.")
        model, described = batchify(model, described)
    content = model.SerializeToString()
    after = StepModel(content, described)
    if "batchify" in changes and not after.batched:
        raise ParityError(
            "Two rows run together in the rewritten graph do not equal each alone.",
            fix="Nothing was written. Leave out `--batchify`: the file runs one row at a time.",
        )
    got, want = _compare(before, after, steps)
    verified, weak = report_comparison(f"{path.name} as it was", steps, got, want)
    notes += weak
    return content, described.model_copy(update={"verified": verified})


def _compare(before: StepModel, after: StepModel, steps: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Run the same sequences through both, one row and several together; return what the second and the first give.

    Raises:
        ParityError: Some value differs by more than rounding.
    """
    rng = np.random.default_rng(3)
    found: tuple[list[dict[str, Array]], list[dict[str, Array]]] = ([], [])
    for rows in _ROWS:
        inputs = {spec.name: random_rows(rng, spec, (rows, steps)) for spec in before.manifest.inputs}
        want, got = (run_chunk(model, inputs) for model in (before, after))
        how = f"of the rewritten graph differs from that of the file in {rows} rows and {steps} timesteps"
        fix = "Nothing was written. Leave out the flag; the file can be served as it is."
        check_equal(got, want, how, fix=fix)
        found[0].append({name: got[name] for name in want})
        found[1].append(want)
    got, want = ({name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in found)
    return got, want
