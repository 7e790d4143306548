"""How fast a `Readout` follows a change of the regime, beside the recursive least squares of padasip.

    pip install --no-deps --target peers padasip && python -m benchmarks.readout --peers peers

Streams of hidden values of one recurrent network; the truth is a linear function of them plus noise, another one from
the change on. Printed is how many timesteps after the change the mean absolute error over all streams, of 50
timesteps, is again within 1.1 of that of a linear model which was fitted on the new regime alone, and how far both
predictions are apart. Without padasip there is no such column.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwell_export.stages import Readout

STREAMS, STEPS, CHANGE, UNITS, INPUTS, NOISE = 40, 9_000, 3_000, 12, 3, 0.1
WINDOW, WITHIN = 50, 1.1
Numbers = npt.NDArray[np.float64]


def streams(rng: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Return hidden values `(STREAMS, STEPS, UNITS)` and the truths `(STREAMS, STEPS)` that come one timestep later."""
    into, back = rng.normal(size=(INPUTS, UNITS)), rng.normal(size=(UNITS, UNITS)) * 0.9 / np.sqrt(UNITS)
    hidden, h = np.zeros((STREAMS, STEPS, UNITS)), np.zeros((STREAMS, UNITS))
    for t in range(STEPS):
        h = np.tanh(rng.normal(size=(STREAMS, INPUTS)) @ into + h @ back)
        hidden[:, t] = h
    before, after = rng.normal(size=(2, STREAMS, UNITS))
    weights = np.where((np.arange(STEPS) < CHANGE)[:, None, None], before, after).swapaxes(0, 1)
    truth = NOISE * rng.normal(size=(STREAMS, STEPS))
    truth[:, 1:] += (hidden[:, :-1] * weights[:, 1:]).sum(-1)
    return hidden, truth


def fitted(hidden: Numbers, truth: Numbers) -> float:
    """Return the mean absolute error of linear models, one for each stream, fitted on the new regime alone."""
    errors = []
    for features, came in zip(hidden[:, CHANGE:-1], truth[:, CHANGE + 1 :], strict=True):
        errors.append(np.abs(came - features @ np.linalg.lstsq(features, came)[0]).mean())
    return float(np.mean(errors))


def of_padasip(rls: Callable[..., Any], hidden: Numbers, truth: Numbers, forgetting: float, ridge: float) -> Numbers:
    """Return the predictions of padasip's filter, `(STREAMS, STEPS)`, with the same start and the same forgetting."""
    found = np.zeros_like(truth)
    for features, came, predicted in zip(hidden, truth, found, strict=True):
        one = rls(UNITS, mu=forgetting, eps=ridge, w="zeros")
        for t in range(1, STEPS):
            one.adapt(came[t], features[t - 1])
            predicted[t] = one.predict(features[t])
    return found


def timesteps_until(predicted: Numbers, truth: Numbers, error: float) -> int | None:
    """Return how many timesteps after the change the error is back within `WITHIN` of another one; None: never."""
    errors = np.abs(predicted[:, CHANGE:-1] - truth[:, CHANGE + 1 :]).mean(axis=0)
    means = np.convolve(errors, np.ones(WINDOW) / WINDOW, "valid")
    back = np.flatnonzero(means <= WITHIN * error)
    return int(back[0]) + WINDOW if back.size else None


def filter_of(peers: Path | None) -> Callable[..., Any] | None:
    """Return padasip's filter; None: it is not installed."""
    sys.path += [str(peers)] * (peers is not None)
    if importlib.util.find_spec("padasip") is None:
        return None
    found: Callable[..., Any] = importlib.import_module("padasip.filters").FilterRLS
    return found


def main() -> None:
    """Print the timesteps by forgetting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="a folder in which padasip is installed")
    rls = filter_of(parser.parse_args().peers)
    hidden, truth = streams(np.random.default_rng(11))
    error = fitted(hidden, truth)
    print(f"fitted on the new regime: error {error:.4f}; timesteps until the error is within {WITHIN} of it")
    print("forgetting   Readout   padasip   largest difference of the two in the last 1,000 timesteps")
    for forgetting in (0.98, 0.99, 0.995, 0.999):
        ours = Readout("h", "x", forgetting=forgetting).reference((hidden, truth[..., None]))[..., 0]
        row = [f"{timesteps_until(ours, truth, error)}"]
        if rls is not None:
            theirs = of_padasip(rls, hidden, truth, forgetting, ridge=1.0)
            apart = np.abs(ours - theirs)[:, -1000:].max()
            row += [f"{timesteps_until(theirs, truth, error)}", f"{apart:.1g}"]
        print(f"{forgetting:<12}", *(f"{text:<9}" for text in row))
    if rls is None:
        print("padasip: not measured; pip install --no-deps --target peers padasip, then --peers peers")


if __name__ == "__main__":
    main()
