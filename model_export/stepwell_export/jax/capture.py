"""`capture`: a function as a jaxpr, in which values do not exist, with open numbers of rows and timesteps."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export
from jax._src import config, core

from stepwell_export.runtime.errors import RefusedModelError

_BY_VALUE = "Use jnp.where(condition, a, b), or lax.scan, in place of `if`, `while`, `float()`, `int()` and numpy."
_BY_LENGTH = (
    "A stream has no length yet: compute the same for every number of timesteps, with lax.scan in place of a loop over "
    "them; or declare the most that the function was made for, StepSpec(.., length=N)."
)

_READS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
)
"""What JAX raises where Python reads a value."""

_LIBRARIES = ("jax", "flax", "equinox", "keras", "stepwell_export.jax")


def capture(
    function: Callable[..., Any], specs: Sequence[tuple[tuple[int | str, ...], str]], length: int | None = None
) -> Any:
    """Trace a function.

    Args:
        function: Takes an array for each spec, and returns a flat list of arrays.
        specs: Shape and dtype of each; `"b"` and `"t"` are the numbers of rows and timesteps.
        length: The most timesteps that it takes; None: any number.

    Returns:
        The closed jaxpr.

    Raises:
        RefusedModelError: It decides by a value, or by the number of rows or timesteps; names the line. Or it fails.
    """
    bounds = [] if length is None else [f"t <= {length}"]
    sizes: dict[Any, Any] = dict(zip(("b", "t"), export.symbolic_shape("b, t", constraints=bounds), strict=True))
    structs = [jax.ShapeDtypeStruct([sizes.get(n, n) for n in shape], dtype) for shape, dtype in specs]  # type: ignore[no-untyped-call]
    try:
        with config.softmax_custom_jvp(True):  # else it is written out while it is traced
            return jax.make_jaxpr(function)(*structs)
    except RefusedModelError:
        raise
    except Exception as exc:
        raise _refusal(exc) from exc


def _refusal(exc: Exception) -> RefusedModelError:
    """Return what an error while tracing means."""
    where, reason = _place(exc), next(iter(str(exc).strip().splitlines()), "").rstrip(".")
    if isinstance(exc, _READS):
        return RefusedModelError(
            f"The function decides by the value of an array{where}; expected the same operations for every input.",
            fix=_BY_VALUE,
        )
    if isinstance(exc, core.InconclusiveDimensionOperation) or "_DimExpr" in str(exc):
        return RefusedModelError(
            f"The function depends on how many timesteps or rows there are{where}: {reason}.", fix=_BY_LENGTH
        )
    return RefusedModelError(
        f"The function fails on arrays of open length{where}: {type(exc).__name__}: {reason}.",
        fix="It must take any number of rows and of timesteps, or of timesteps up to the most that it was made for, "
        "StepSpec(.., length=N): cut what has a row for each to its input, jnp.asarray(table)[: x.shape[1]].",
    )


def _place(exc: BaseException) -> str:
    """Return the innermost line of the user's own code; empty where there is none."""
    homes = [str(Path(str(sys.modules[name].__file__)).parent) for name in _LIBRARIES if name in sys.modules]
    for frame in reversed(traceback.extract_tb(exc.__traceback__)):
        if not frame.filename.startswith(tuple(homes)):
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""
