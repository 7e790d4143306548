"""The numbers of rows and timesteps that a sequence graph is run with, which show what its axes carry."""

from __future__ import annotations

from stepwell_export.runtime.errors import RefusedModelError

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
