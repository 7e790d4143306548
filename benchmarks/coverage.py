"""Coverage of `Conformal` and of a fixed interval, for ten kinds of changing noise: `python -m benchmarks.coverage`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from stepwell_export.stages import Conformal

STEPS, WARM, WINDOW = 41_000, 1_000, 4_000
Numbers = npt.NDArray[np.float64]

_TIME = np.arange(STEPS) / STEPS
SIZES: dict[str, Numbers] = {
    "constant noise": np.ones(STEPS),
    "noise that grows to 1.5 and back": np.interp(_TIME, [0, 0.5, 1], [1, 1.5, 1]),
    "noise that doubles and back": np.interp(_TIME, [0, 0.5, 1], [1, 2, 1]),
    "noise that grows fourfold and back": np.interp(_TIME, [0, 0.5, 1], [1, 4, 1]),
    "noise that shrinks to a quarter": np.interp(_TIME, [0, 1], [4, 1]),
    "a day of 500 timesteps": 1 + 0.5 * np.sin(2 * np.pi * np.arange(STEPS) / 500),
    "a season of 20,000 timesteps": 1.5 + 0.5 * np.sin(4 * np.pi * _TIME),
    "noise that jumps to twice": np.where(_TIME < 0.5, 1.0, 2.0),
}
"""Size of the noise of a series in each timestep."""

DRAWS: dict[str, Callable[[np.random.Generator], Numbers]] = {
    "normal": lambda rng: rng.standard_normal(STEPS),
    "Student's t, 4 degrees of freedom": lambda rng: rng.standard_t(4, STEPS),
    "one-sided, exponential": lambda rng: rng.exponential(1.0, STEPS) - 1,
}


def series(sizes: Numbers, noise: Numbers) -> tuple[Numbers, Numbers]:
    """Return an autoregressive series and, for each timestep, the prediction of the next one."""
    values = np.zeros(STEPS)
    for t in range(1, STEPS):
        values[t] = 0.8 * values[t - 1] + sizes[t] * noise[t]
    return values, 0.8 * values


def windows(inside: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the least and the largest share over any `WINDOW` timesteps after the first `WARM`."""
    total = np.concatenate([[0], np.cumsum(inside[WARM:])])
    shares = (total[WINDOW:] - total[:-WINDOW]) / WINDOW
    return float(shares.min()), float(shares.max())


def main() -> None:
    """Print the coverage of both on each series."""
    rng = np.random.default_rng(7)
    cases = [(name, sizes, "normal") for name, sizes in SIZES.items()]
    cases += [(f"noise of {kind}", SIZES["noise that doubles and back"], kind) for kind in [*DRAWS][1:]]
    print(f"coverage over any {WINDOW:,} timesteps, 0.9 is asked for: {'Conformal':>14} {'fixed':>15}")
    for name, sizes, kind in cases:
        values, prediction = series(sizes, DRAWS[kind](rng))
        found = Conformal("p", "x").reference((prediction[None, :, None], values[None, :, None]))
        low, high = (found[key][0, :-1, 0] for key in ("low", "high"))
        residuals = np.abs(values[1:] - prediction[:-1])
        learned = windows((low <= values[1:]) & (values[1:] <= high))
        fixed = windows(residuals <= np.quantile(residuals[:WARM], 0.9))
        print(f"{name:<52} {learned[0]:.3f} to {learned[1]:.3f} {fixed[0]:.3f} to {fixed[1]:.3f}")


if __name__ == "__main__":
    main()
