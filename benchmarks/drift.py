"""Targets of `python -m benchmarks drift`: the service without drift and with it, on a model with a reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.engines import MODEL
from benchmarks.load import Load
from benchmarks.servers import STEP, Target, stepwell
from benchmarks.workload import FEATURES, Workload
from stepwell_export.runtime.step_model import StepModel
from tests.addons.drift.live import referenced
from tests.graphs import Built, write_model


def drift_targets(workload: Workload) -> list[Target]:
    """Return the service without drift and with it, on the workload's model with a reference of the same inputs."""
    x = np.fromfile(workload.row_values, np.float32).reshape(32, -1, FEATURES)
    referenced_workload = replace(workload, folder=workload.folder / "referenced")
    write_model(referenced_workload.models, MODEL, lambda: referenced(lambda: _built(workload), x))
    load = Load(STEP, '"y":[')
    return [
        Target("without drift", stepwell(referenced_workload, "--no-drift"), load),
        Target("with drift", stepwell(referenced_workload), load),
    ]


def _built(workload: Workload) -> Built:
    return workload.model.read_bytes(), StepModel(workload.model).manifest
