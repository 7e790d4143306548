"""`ObservedModel` counts a fair choice of the timesteps if more were collected than it may count."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from stepwell.addons.drift.features import ModelFeatures
from stepwell.addons.drift.observed_model import ObservedModel
from stepwell.addons.drift.sampler import MAX_TIMESTEPS
from stepwell.addons.drift.sketch import FeatureSketch
from stepwell.addons.drift.windows import WINDOWS, read_window
from stepwell.models.served import ServedModel
from stepwell.store.state_store import StateStore
from stepwell_export.runtime.manifest import InputSpec, Manifest, OutputSpec
from stepwell_export.runtime.step_model import StepModel
from tests.addons.drift.live import normal, write_reference_model
from tests.servers import Server


@contextlib.asynccontextmanager
async def observing(server: Server, folder: Path, name: str) -> AsyncIterator[tuple[ObservedModel, StateStore]]:
    """Observe a model of two numbers; each name is of one test."""
    write_reference_model(folder, name, normal(20, 50, 2))
    path, store = folder / f"{name}.onnx", StateStore(server.url)
    yield ObservedModel(store, ServedModel(name, 1, StepModel(path), path, ()), 64, "worker"), store
    await store.close()


async def counted(observed: ObservedModel, store: StateStore) -> FeatureSketch:
    observed.count(time.time())
    await observed.windows.write(time.time())
    return await read_window(store, observed.name, WINDOWS[0], time.time())


async def test_a_choice_of_rows_in_the_same_order_follows_none_of_their_streams(
    shared_redis: Server, tmp_path: Path
) -> None:
    streams, x = [f"s{i}" for i in range(64)], np.zeros((64, 1, 2), np.float32)
    x[::8] = 100
    async with observing(shared_redis, tmp_path, "fair") as (observed, store):
        for _ in range(3 * MAX_TIMESTEPS // len(streams)):
            observed.sampler.add(streams, {"x": x}, {"y": x})
        found = await counted(observed, store)

    assert found.count[0] == MAX_TIMESTEPS  # every second of them
    assert found.outside / found.count == pytest.approx(1 / 8, abs=0.04)


async def test_a_part_of_a_batch_without_rows_is_counted_with_the_others(shared_redis: Server, tmp_path: Path) -> None:
    x = np.ones((3, 1, 2), np.float32)
    async with observing(shared_redis, tmp_path, "parts") as (observed, store):
        observed.sampler.add([], {"x": x[:0]}, {"y": x[:0]})  # all streams of the batch take part in a release
        observed.sampler.add(["a", "b", "c"], {"x": x}, {"y": x})
        found = await counted(observed, store)

    assert found.count[0] == 3


def test_an_output_that_drift_is_not_computed_from_is_not_observed() -> None:
    outputs = [OutputSpec(name=name, dtype="float32", shape=[]) for name in ("threshold", "exceeds")]
    outputs[1] = outputs[1].model_copy(update={"drift": False})
    manifest = Manifest(inputs=[InputSpec(name="x", dtype="float32", shape=[])], outputs=outputs)

    assert [tensor.name for tensor in ModelFeatures(manifest, 64).outputs] == ["threshold"]
