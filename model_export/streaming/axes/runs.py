"""Runs a sequence graph on onnxruntime, with the numbers of rows and timesteps that show what its axes carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from model_export.errors import ModelLoadError, RefusedModelError
from model_export.graph.onnx_file import with_outputs
from model_export.manifest import Array
from model_export.runtime.session import open_session, run_options

ROWS = (3, 5)
LENGTHS = (47, 53)
FEW = (11, 13)
"""Numbers of timesteps that show a large graph without windows as well."""
PERTURBED_STEP = 19
"""The timestep that the second run with the same sizes changes, if the sequences are that long."""

SHORTEST_DECLARED = 2
"""The smallest declared length: fewer timesteps do not show what depends on which."""


def trial_lengths(declared: int | None, tried: tuple[int, int] = LENGTHS) -> tuple[int, int]:
    """Return the two numbers of timesteps that a graph is run with: those given, or its declared length and fewer.

    Raises:
        RefusedModelError: The declared length is too small.
    """
    if declared is None or declared >= tried[1]:
        return tried
    if declared < SHORTEST_DECLARED:
        raise RefusedModelError(
            f"The declared length is {declared} timesteps; expected at least {SHORTEST_DECLARED}.",
            fix="Use the number of timesteps that the model was trained with.",
        )
    return max(declared - 3, (declared + 1) // 2), declared


def perturbed_step(lengths: tuple[int, int]) -> int:
    """Return the timestep that the run with one change has it at."""
    return min(PERTURBED_STEP, lengths[0] // 2)


def session(proto: Any, *, every_tensor: bool = False) -> ort.InferenceSession:
    """Load a graph on onnxruntime.

    Raises:
        ModelLoadError: onnxruntime refuses it.
    """
    if every_tensor:
        proto = with_outputs(proto, [name for node in proto.graph.node for name in node.output if name])
    return open_session(proto.SerializeToString(), where="the graph", threads=1, as_written=every_tensor)


def run(loaded: ort.InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Any]:
    """Run a graph and return every output by name, the inputs among them.

    Raises:
        ModelLoadError: onnxruntime failed on these inputs.
    """
    names = [output.name for output in loaded.get_outputs()]
    try:
        return {**feeds, **dict(zip(names, loaded.run(names, feeds, run_options()), strict=True))}
    except Exception as exc:
        given = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
        raise ModelLoadError(f"onnxruntime failed on {given}: {str(exc).strip()}.") from exc
