"""Models with a reference, and what a running service shows of their drift."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwell_export.runtime.manifest import Manifest
from stepwell_export.runtime.psi import data_reference
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.runners import stepped
from tests.addons.releases.fleet import wait_until
from tests.api.running import Service
from tests.graphs import Build, Built, lstm, write_model

Array = npt.NDArray[Any]
WITHIN_S = 60.0


def write_reference_model(folder: Path, name: str, data: Array, *, version: int | None = None) -> Manifest:
    """Write an LSTM that was verified on `data`, `(N, T, features)` float32, and return its manifest."""
    graph, manifest = referenced(lambda: lstm(data.shape[2]), data)
    write_model(folder, name, lambda: (graph, manifest), version=version)
    return manifest


def referenced(build: Build, data: Array) -> Built:
    """Return a model of one input `x`, whose manifest has the reference of its runs over `data`."""
    graph, manifest = build()
    outputs, _ = stepped(StepModel(graph, manifest), {"x": data})
    return graph, manifest.model_copy(update={"reference": data_reference(manifest, {"x": data}, outputs)})


def step_all(service: Service, model: str, streams: Sequence[str], xs: Array) -> dict[str, Any]:
    """Step streams once in columns, `(streams, features)`, or by a chunk, `(streams, T, features)`."""
    what = "steps" if xs.ndim == 3 else "step"
    answer = service.http.post(f"/v1/models/{model}/{what}", json={"streams": [*streams], "inputs": {"x": xs.tolist()}})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert not found["errors"]
    return found


def drift(service: Service, model: str, query: str = "") -> dict[str, Any]:
    answer = service.http.get(f"/v1/models/{model}/drift{query}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def features(service: Service, model: str, window: str = "1h", query: str = "") -> dict[str, dict[str, Any]]:
    """Return the features of inputs and outputs by name."""
    found = drift(service, model, query)["windows"][window]
    return {**found["inputs"], **found["outputs"]}


def counted(service: Service, model: str, n: int, feature: str = "x[0]") -> dict[str, dict[str, Any]]:
    """Wait until `n` values of a feature, present or missing, are counted, and return all features."""

    def n_seen() -> float:
        found = features(service, model)[feature]
        return float(found["count"] / (1 - found["missing"])) if found["count"] else 0.0

    wait_until(lambda: round(n_seen()) >= n, WITHIN_S)
    found = features(service, model)
    assert round(n_seen()) == n
    return found


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
