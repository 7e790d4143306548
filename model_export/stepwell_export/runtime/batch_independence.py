"""Whether a loaded graph runs rows together: two different streams alone and together, compared.

A declared symbolic batch axis proves nothing: published models exist that declare one and fail on two rows. Nor do
equal samples prove that rows never meet; exporting and adopting read that from the operators
(`stepwell_export.structure`), and this is the check of what was loaded, which needs no onnx package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.runtime.manifest import Array, Manifest, TensorSpec

Run = Callable[[Mapping[str, Array], Mapping[str, Array]], tuple[dict[str, Array], dict[str, Array]]]
"""`(inputs, states)` to `(outputs, next states)`, the batch on axis 0."""

_STEPS = 3  # rows that mix in the state alone are equal at the first step, where all states are


def rows_are_independent(manifest: Manifest, initial_states: Callable[[int], dict[str, Array]], run: Run) -> bool:
    """Return whether two rows run together equal each run alone; run one alone in any case."""
    rng = np.random.default_rng(0)
    steps = [{spec.name: random_rows(rng, spec, (2,)) for spec in manifest.inputs} for _ in range(_STEPS)]
    first, second = (
        _follow(run, [{name: rows[r : r + 1] for name, rows in inputs.items()} for inputs in steps], initial_states(1))
        for r in range(2)
    )
    axes = [spec.batch_axis for spec in (*manifest.inputs, *manifest.answered)]
    axes += [state.batch_axis for state in manifest.states]
    if manifest.batch.mode == "single" or manifest.batch.max < 2 or None in axes:
        return False
    try:
        together = _follow(run, steps, initial_states(2))
    except ModelLoadError:
        return False
    random = {output.name for output in manifest.outputs if output.kind == "random"}
    return all(
        nearly_equal(
            np.stack([both[name] for both in together]),
            np.stack([np.concatenate([one[name], other[name]]) for one, other in zip(first, second, strict=True)]),
        )
        for name in together[0].keys() - random
    )


def nearly_equal(found: Array, expected: Array) -> bool:
    """Return whether two arrays differ by no more than rounding; integers and booleans must be equal.

    Running rows together takes other kernels than running one alone, with another order of additions. How much that
    makes follows the largest of the values.
    """
    if found.shape != expected.shape:
        return False
    if found.dtype.kind != "f":
        return np.array_equal(found, expected)
    eps = float(np.finfo(found.dtype).eps)
    wide, size = np.float64, magnitude(np.stack([found, expected]))
    return np.allclose(
        found.astype(wide), expected.astype(wide), rtol=max(1e-4, 8 * eps), atol=max(1e-5, 8 * eps) * size,
        equal_nan=True,
    )  # fmt: skip


def random_rows(rng: np.random.Generator, spec: TensorSpec, lead: tuple[int, ...]) -> Array:
    """Draw rows of a tensor, shape `(*lead, *shape)`; integers are 0 or 1, valid in every vocabulary and flag."""
    shape = (*lead, *spec.row_shape)
    if np.dtype(spec.dtype).kind == "f":
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)


def _follow(run: Run, steps: Sequence[Mapping[str, Array]], states: dict[str, Array]) -> list[dict[str, Array]]:
    """Run steps with the states fed back; return each step's outputs and states by name."""
    seen = []
    for inputs in steps:
        outputs, states = run(inputs, states)
        seen.append({**outputs, **{f"state {name}": value for name, value in states.items()}})
    return seen


def magnitude(values: Array) -> float:
    """Return the largest magnitude of finite values; 1 where there is none but zero."""
    sizes = np.abs(values.astype(np.float64))
    return float(sizes.max(initial=0.0, where=np.isfinite(sizes))) or 1.0
