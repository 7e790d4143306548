"""Two versions of a forecaster of which one is better in one label and worse in the other, and data to judge them."""

from __future__ import annotations

from typing import Any

import numpy as np

from stepwell_export.runtime.manifest import Array
from tests.graphs import Built, _s, _t, graph_from_text, manifest_of

LABELS = ["vibration", "rpm"]
UNITS = ["mm/s", "1/min"]
NOISE = (0.2, 30.0)


def forecaster(vibration: float = 0.0, rpm: float = 0.0, *, feedback: bool = True, scale: float = 1.0) -> Built:
    """A forecast of the next row that adds a bias to the newest one: `next = (sensors + bias) / scale`.

    Args:
        vibration: The bias of the first number.
        rpm: The bias of the second number.
        feedback: Whether the manifest has the rule that feeds `next` back to `sensors`.
        scale: What the rule multiplies predictions with.
    """
    graph = graph_from_text(
        """
        forecaster (float[B,2] sensors, float[B,1] n) => (float[B,2] next, float[B,1] n_next) {
            one = Constant <value = float[1] {1}> ()
            n_next = Add (n, one)
            biased = Add (sensors, bias)
            next = Div (biased, scale)
        }""",
        {"bias": np.array([vibration, rpm], np.float32), "scale": np.array([scale], np.float32)},
    )
    rule: Any = "next" if scale == 1 else {"output": "next", "scale": scale}
    return graph, manifest_of(
        name="forecaster",
        inputs=[{**_t("sensors", "float32", [2]), "labels": LABELS, "unit": UNITS}],
        states=[_s("n", "n_next", "float32", [1])],
        outputs=[_t("next", "float32", [2])],
        feedback={"sensors": rule} if feedback else {},
    )


def old_version() -> Built:
    """The current version: exact in rpm, biased in vibration."""
    return forecaster(vibration=0.4)


def new_version() -> Built:
    """The candidate: exact in vibration, biased in rpm."""
    return forecaster(rpm=60.0)


AHEAD = 3
NEAR, FAR = np.zeros((2, AHEAD, 2))
"""Biases by timestep ahead and label: near is wrong about rpm 3 timesteps ahead, far about vibration 1 ahead."""
NEAR[2, 1], FAR[0, 0] = 90.0, 0.5


def ahead(bias: Array, *, feedback: bool = True) -> Built:
    """A forecast of the next `AHEAD` rows, `(AHEAD, 2)`, each the newest one and a bias, `(AHEAD, 2)`."""
    graph = graph_from_text(
        f"""
        ahead (float[B,2] sensors, float[B,1] n) => (float[B,{AHEAD},2] next, float[B,1] n_next) {{
            one = Constant <value = float[1] {{1}}> ()
            n_next = Add (n, one)
            axis = Constant <value = int64[1] {{1}}> ()
            newest = Unsqueeze (sensors, axis)
            next = Add (newest, bias)
        }}""",
        {"bias": np.asarray(bias, np.float32)},
    )
    return graph, manifest_of(
        name="ahead",
        inputs=[{**_t("sensors", "float32", [2]), "labels": LABELS}],
        states=[_s("n", "n_next", "float32", [1])],
        outputs=[_t("next", "float32", [AHEAD, 2])],
        feedback={"sensors": {"output": "next", "horizon": AHEAD}} if feedback else {},
    )


def errors_ahead(xs: Array, bias: Array) -> dict[str, tuple[int, float]]:
    """Return how many truths there are and the mean absolute error by label, `rpm+3`, from the whole sequences."""
    found = {}
    for n in range(1, AHEAD + 1):
        predicted = (xs[:, :-n] + np.asarray(bias[n - 1], np.float32)).astype(np.float64)
        for i, label in enumerate(LABELS):
            errors = np.abs(xs[:, n:, i].astype(np.float64) - predicted[..., i])
            found[f"{label}+{n}"] = errors.size, float(errors.mean())
    return found


def walks(streams: int, timesteps: int, seed: int = 0) -> Array:
    """Return random walks around 3 mm/s and 3,000 rpm, `(streams, timesteps, 2)` float32."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(streams, timesteps, 2)) * NOISE
    found: Array = (np.array([3.0, 3000.0]) + steps.cumsum(axis=1)).astype(np.float32)
    return found


def expected_errors(xs: Array) -> dict[str, dict[str, float]]:
    """Return the mean absolute errors of both versions by label, computed from the whole sequences."""
    found = {}
    for i, label in enumerate(LABELS):
        came = xs[:, 1:, i].astype(np.float64)
        of = {
            name: (xs[:, :-1, i] + np.float32(bias[i])).astype(np.float64)
            for name, bias in (("current", (0.4, 0.0)), ("candidate", (0.0, 60.0)))
        }
        found[label] = {name: float(np.abs(came - predicted).mean()) for name, predicted in of.items()}
    return found
