"""Prove the description of a step graph by running it; there is no original to compare with but itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model_export.errors import ParityError, RefusedModelError
from model_export.manifest import Array, Manifest, Parity
from model_export.runtime.batch_independence import nearly_equal, random_rows
from model_export.step_model import StepModel
from model_export.structure.rows import rows_of_step
from model_export.verify.evidence import Evidence
from model_export.verify.report import is_weak
from model_export.verify.tolerance import OutputParity, Tolerance, difference, largest

if TYPE_CHECKING:
    import onnx

ATOL, RTOL = 1e-5, 1e-4

ITSELF = "itself: rows alone and together"
"""What a graph is compared with that is adopted as it is."""


def verify_adopted(path: Path, graph: onnx.ModelProto, manifest: Manifest, steps: int, notes: list[str]) -> Manifest:
    """Run three different streams, twice together and each alone, if rows are independent by the graph's operators.

    Args:
        path: The ONNX file.
        graph: What is in it; weights may lie beside the file.
        manifest: The description to prove.
        steps: Timesteps of each stream, states fed back.
        notes: What people should read is added here.

    Returns:
        The manifest with the report and the batch mode.

    Raises:
        ManifestError: The description does not fit the graph.
        ModelLoadError: The graph fails when its states are fed back.
        RefusedModelError: Two runs on the same values differ.
    """
    verdict = rows_of_step(graph, manifest).verdict
    if verdict.outcome != "independent":
        if manifest.batch.mode == "stack":
            notes.append(f"rows are run one at a time: {verdict.why}")
        manifest = manifest.model_copy(update={"batch": manifest.batch.single(verdict.why)})
    model = StepModel(path, manifest)
    rng = np.random.default_rng(1)
    inputs = {spec.name: random_rows(rng, spec, (3, steps)) for spec in manifest.inputs}
    together = run_chunk(model, inputs)
    again = run_chunk(model, inputs)
    notes += [
        f"{name} is not finite (NaN or infinite) on random numbers from the initial states: such a step is refused "
        "when it is served; look at `--init`"
        for name, value in together.items()
        if value.dtype.kind == "f" and not np.isfinite(value).all()
    ]
    for name in together:
        if not nearly_equal(together[name], again[name]):
            raise RefusedModelError(
                f"{name} of {path} differs between two runs on the same values; expected the same.",
                fix="Declare an output that is random with `--output NAME=random`.",
            )
    notes += _unmoved(model, together)
    parts = [run_chunk(model, {name: value[r : r + 1] for name, value in inputs.items()}) for r in range(3)]
    alone = {name: np.concatenate([part[name] for part in parts]) for name in together}
    if not model.batched or not all(nearly_equal(together[name], alone[name]) for name in together):
        if manifest.batch.mode == "single":
            return manifest
        why = "rows run together do not equal rows run alone"
        notes.append(f"{why}: it runs one row at a time")
        return manifest.model_copy(update={"batch": manifest.batch.single(why)})
    verified, weak = report_comparison(ITSELF, steps, together, alone)
    notes += weak
    return manifest.model_copy(update={"verified": verified})


def report_comparison(
    against: str, steps: int, found: Mapping[str, Array], expected: Mapping[str, Array], **more: Any
) -> tuple[Parity, list[str]]:
    """Return the report of a comparison of what `run_chunk` returns, and a note for each output whose proof is weak.

    Args:
        against: What the graph was compared with.
        steps: Timesteps that were compared.
        found: Of the graph.
        expected: Of what it was compared with.
        more: Other fields of the report.
    """
    lines = _judge_outputs(found, expected)
    report = Parity.model_validate({
        "against": against, "steps": steps,
        "max_abs": max((largest_difference(found[name], expected[name]) for name in expected), default=0.0),
        "atol": max((line.atol for line in lines), default=ATOL), "rtol": RTOL, "sequences": ["random"],
        "weak": is_weak(lines), "scale": {line.name: asdict(line.scale) for line in lines}, **more,
    })  # fmt: skip
    return report, [f"the verification of {line.name} is weak: {line.why}" for line in lines if line.weak]


def _judge_outputs(together: Mapping[str, Array], alone: Mapping[str, Array]) -> list[OutputParity]:
    """Return what the proof of each output is worth."""
    lines = []
    for what, want in alone.items():
        if what.startswith("Output "):
            line = OutputParity(what.removeprefix("Output ").strip("'"))
            worth = Evidence(Tolerance(ATOL, RTOL, scaled=True))
            worth.note(difference(together[what], want), want)
            worth.judge(line)
            lines.append(line)
    return lines


def _unmoved(model: StepModel, after: Mapping[str, Array]) -> list[str]:
    """Return a note for each state that is, after all timesteps, what it was before the first."""
    return [
        f"state {name} is after all timesteps what it was before them: is it paired with the right output?"
        for name, before in model.initial_states(3).items()
        if np.array_equal(before.reshape(3, -1), after[f"State {name!r}"])
    ]


def run_chunk(model: StepModel, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return all outputs that are not random, and the final states with one axis behind that of the rows."""
    rows = len(next(iter(inputs.values())))
    outputs, states = model.chunk(inputs, model.initial_states(rows))
    sure = {f"Output {o.name!r}": outputs[o.name] for o in model.manifest.answered if o.kind == "value"}
    return {**sure, **{f"State {name!r}": value.reshape(rows, -1) for name, value in states.items()}}


def check_equal(found: Mapping[str, Array], expected: Mapping[str, Array], how: str, *, fix: str) -> None:
    """Check that values differ by no more than rounding.

    Args:
        found: By name, as `run_chunk` has them.
        expected: The same of the original.
        how: For the message, between the name and the largest difference.
        fix: For the message.

    Raises:
        ParityError: They differ; names the first one.
    """
    for name, value in expected.items():
        if not nearly_equal(found[name], value):
            raise ParityError(f"{name} {how} by {largest_difference(found[name], value):.3g}.", fix=fix)


def largest_difference(found: Array, expected: Array) -> float:
    """Return the largest difference of two arrays; two NaN at one place do not differ."""
    return largest(difference(found, expected, equal_nan=True))
