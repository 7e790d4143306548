"""Prove the description of a step graph by running it; there is no original to compare with but itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stepwell_export.adoption.rare_rows import RARE, SCALES, runnable_rare_rows
from stepwell_export.graph.nodes import all_nodes
from stepwell_export.runtime.errors import ParityError, RefusedModelError
from stepwell_export.runtime.manifest import Array, Manifest, Parity
from stepwell_export.runtime.step_model import StepModel, nearly_equal, random_rows
from stepwell_export.structure.rows import rows_of_step
from stepwell_export.verify.evidence import Evidence
from stepwell_export.verify.report import is_weak
from stepwell_export.verify.tolerance import ATOL, RTOL, OutputParity, Tolerance, difference, largest

if TYPE_CHECKING:
    import onnx


_ALONE = 3  # rows that are also run alone

ITSELF = "itself: rows alone and together"
"""What a graph is compared with that is adopted as it is."""


def verify_adopted(
    path: Path, graph: onnx.ModelProto, manifest: Manifest, steps: int, notes: list[str]
) -> tuple[Manifest, str]:
    """Run ordinary streams and streams with something rare in them, twice together and some alone.

    Rows run together only if the graph's operators show that they never meet.

    Args:
        path: The ONNX file.
        graph: The same, without what only its weights need.
        manifest: The description to prove.
        steps: Timesteps of each stream, states fed back.
        notes: What people should read is added here.

    Returns:
        The description with the report and the batch mode that the runs showed, and, in words, what was not compared.

    Raises:
        ManifestError: The description does not fit the graph.
        ModelLoadError: The graph fails when its states are fed back.
        RefusedModelError: Two runs on the same values differ.
    """
    verdict = rows_of_step(graph, manifest).verdict
    if verdict.outcome != "independent":
        if manifest.batch.mode == "stack":
            notes.append(f"rows are run one at a time: {verdict.why}")
        manifest = _one_by_one(manifest, verdict.why)
    model = StepModel(path, manifest)
    rng = np.random.default_rng(1)
    inputs = {spec.name: random_rows(rng, spec, (RARE, steps)) for spec in manifest.inputs}
    together = _run_twice(path, model, inputs)
    notes += [
        f"{name} is not finite (NaN or infinite) on random numbers from the initial states: such a step is refused "
        "when it is served; look at `--init`"
        for name, value in together.items()
        if value.dtype.kind == "f" and not np.isfinite(value).all()
    ]
    notes += _unmoved(model, together)
    operators = {node.op_type for node in all_nodes(graph.graph)}
    rare, most = runnable_rare_rows(manifest, steps, operators, lambda rows: _run_twice(path, model, rows))
    few = {name: value[:_ALONE] for name, value in inputs.items()}
    parts = [run_chunk(model, {name: value[r : r + 1] for name, value in few.items()}) for r in range(_ALONE)]
    alone = {name: np.concatenate([part[name] for part in parts]) for name in together}
    found = {name: value[:_ALONE] for name, value in together.items()}
    unknown = _unknown(manifest, steps, None if rare is None else most)
    if not model.batched or not all(nearly_equal(found[name], alone[name]) for name in found):
        if manifest.batch.mode == "single":
            return manifest, unknown
        why = "rows run together do not equal rows run alone"
        notes.append(f"{why}: it runs one row at a time")
        return _one_by_one(manifest, why), unknown
    if rare is not None and (name := _changed_by_others(model, inputs, rare, together)) is not None:
        why = f"{name} of a row changes with what the other rows are"
        notes.append(f"{why}: it runs one row at a time")
        return _one_by_one(manifest, why), unknown
    verified, weak = report_comparison(ITSELF, steps, found, alone)
    notes += weak
    return manifest.model_copy(update={"verified": verified}), unknown


def _unknown(manifest: Manifest, steps: int, most: int | None) -> str:
    """Return what was not compared; `most` is the largest integer, None: the graph does not run on rare rows."""
    numbers = "random numbers around 0 alone, as it fails on others"
    if most is not None:
        numbers = f"scales from {min(SCALES):g} to {max(SCALES):g}, spikes and ties"
    if most is not None and any(np.dtype(spec.dtype).kind in "iu" for spec in manifest.inputs):
        numbers += f", integers from 0 to {most:,}"
    return (
        f"there is no original: the graph was compared with itself, rows alone and together, over {steps} timesteps "
        f"({numbers}). Whether each state is followed by the output that its author meant, and what other values and "
        "longer streams give, was not compared: compare some answers with the author's"
    )


def _one_by_one(manifest: Manifest, why: str) -> Manifest:
    return manifest.model_copy(update={"batch": manifest.batch.single(why)})


def _run_twice(path: Path, model: StepModel, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run sequences twice and return what the first run gives.

    Raises:
        RefusedModelError: The second gives something else.
    """
    first, second = run_chunk(model, inputs), run_chunk(model, inputs)
    for name in first:
        if not nearly_equal(first[name], second[name]):
            raise RefusedModelError(
                f"{name} of {path} differs between two runs on the same values; expected the same.",
                fix="Declare an output that is random with `--output NAME=random`.",
            )
    return first


def _changed_by_others(
    model: StepModel, inputs: Mapping[str, Array], rare: Mapping[str, Array], together: Mapping[str, Array]
) -> str | None:
    """Return what differs, in any bit, in a row whose neighbours are rare ones instead of ordinary ones; None: nothing.

    Rows of one batch are computed by the same kernels, so that no rounding has to be allowed.
    """
    for first in (0, 1):
        mixed = {name: value.copy() for name, value in inputs.items()}
        for name, value in rare.items():
            mixed[name][first::2] = value[first::2]
        found = run_chunk(model, mixed)
        for name, value in found.items():
            if value[1 - first :: 2].tobytes() != together[name][1 - first :: 2].tobytes():
                return name
    return None


def report_comparison(
    against: str, steps: int, found: Mapping[str, Array], expected: Mapping[str, Array]
) -> tuple[Parity, list[str]]:
    """Return the report of a comparison of what `run_chunk` returns, and a note for each output whose proof is weak.

    Args:
        against: What the graph was compared with.
        steps: Timesteps that were compared.
        found: Of the graph.
        expected: Of what it was compared with.
    """
    lines = _judge_outputs(found, expected)
    report = Parity.model_validate({
        "against": against, "steps": steps,
        "max_abs": max((largest_difference(found[name], expected[name]) for name in expected), default=0.0),
        "atol": max((line.atol for line in lines), default=ATOL), "rtol": RTOL, "sequences": ["random"],
        "weak": is_weak(lines), "scale": {line.name: asdict(line.scale) for line in lines},
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
