"""What drift costs: the service with and without it, on a model with a reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.load import Load
from benchmarks.servers import STEP, Target, stepwell
from benchmarks.workload import FEATURES, ROWS, Workload
from model_export.distribution import data_reference
from model_export.manifest import sidecar_of
from model_export.step_model import StepModel
from model_export.verify.runners import stepped

_SEQUENCES = 32


def add_reference(workload: Workload) -> None:
    """Write a manifest beside the model that has the reference of the workload's own inputs."""
    model = StepModel(workload.model)
    rows = np.fromfile(workload.row_values, np.float32).reshape(_SEQUENCES, ROWS // _SEQUENCES, FEATURES)
    inputs = {model.manifest.inputs[0].name: rows}
    reference = data_reference(model.manifest, inputs, stepped(model, inputs)[0])
    sidecar_of(workload.model).write_text(model.manifest.model_copy(update={"reference": reference}).to_json())


def drift_targets(workload: Workload) -> list[Target]:
    """Return pairs of targets, without and with drift; the ratio of a pair is that of its CPU times per step."""
    start = {"off": stepwell(workload, env={"STEPWELL_DRIFT": "off"}), "on": stepwell(workload)}
    frames = replace(Load(connections=4, streams=4, websocket="/v1/models/bench/feed"), frame=(256, 1))
    loads = {"HTTP, 256 connections": Load(STEP, '"y":['), "msgpack, 256 streams a frame": frames}
    return [Target(f"{name}: {how}", start[how], load) for name, load in loads.items() for how in start]
