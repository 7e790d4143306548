"""What a release costs a service: without one, outside its trial, and with a part or all of the streams as pairs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.load import Load
from benchmarks.servers import STEP, Running, Start, Target, stepwell
from benchmarks.workload import Workload

_RELEASE = "/v1/models/bench/release"


def release_targets(workload: Workload) -> list[Target]:
    """Return the targets; ratios refer to the first."""
    load = Load(STEP, '"y":[')
    return [
        Target("no release", stepwell(workload), load),
        Target("release, 0 %", _released(workload, "shadow", 0), load),
        Target("shadow, 10 %", _released(workload, "shadow", 10), load),
        Target("shadow, 100 %", _released(workload, "shadow", 100), load),
        Target("ramp, 100 %", _released(workload, "ramp", 100), load),
    ]


def write_next_version(model: Path, target: Path, *, change: float = 1e-6) -> None:
    """Write the same step graph with other weights, to a folder that may be missing.

    Args:
        model: The step graph.
        target: The file to write.
        change: By how much each weight changes, as a share of it. By default, predictions change less than what the
            load generator tolerates.
    """
    graph = onnx.load_model_from_string(model.read_bytes())
    rng = np.random.default_rng(0)
    for tensor in graph.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1:
            changed = (values * (1 + change * rng.standard_normal(values.shape))).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(graph.SerializeToString())


def _released(workload: Workload, mode: str, percent: float) -> Start:
    """Return a start of `stepwell serve` with two versions of the model, which has a release."""

    @contextlib.contextmanager
    def start(folder: Path) -> Iterator[Running]:
        versions = replace(workload, folder=folder / "versions")
        versions.models.mkdir(parents=True)
        shutil.copy(workload.model, versions.model)
        write_next_version(workload.model, versions.models / "bench" / "2" / "model.onnx")
        with stepwell(versions)(folder) as running:
            body = {"current": 1, "candidate": 2, "mode": mode, "percent": percent, "salt": "s"}
            url = f"http://127.0.0.1:{running.port}{_RELEASE}"
            httpx2.put(url, json=body, trust_env=False, timeout=30).raise_for_status()
            yield running

    return start
