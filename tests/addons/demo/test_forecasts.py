"""The demo's second model predicts the next timestep, and its recordings are sent as live streams."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import httpx2
import numpy as np
import pytest

from stepwell.addons.demo.forecasts import FORECAST_MODEL, send_motion
from stepwell.addons.demo.recordings import MODELS, Recordings
from stepwell_client import Client
from stepwell_export.runtime.step_model import StepModel
from tests.addons.releases.fleet import wait_until
from tests.processes import service_process

CHANNELS = 3


def test_the_forecast_model_is_better_than_the_last_value_on_held_out_recordings() -> None:
    model, motion = StepModel(MODELS / f"{FORECAST_MODEL}.onnx"), Recordings.load().x[..., :CHANNELS]
    states, errors = model.initial_states(len(motion)), []
    for timestep in range(motion.shape[1] - 1):
        outputs, states = model.step({"motion": motion[:, timestep]}, states)
        errors.append(np.abs(outputs["next"] - motion[:, timestep + 1]).mean())

    assert np.mean(errors) < 0.9 * np.abs(np.diff(motion, axis=1)).mean()


def test_the_forecast_model_is_small_and_has_labels_and_a_feedback_rule() -> None:
    manifest = StepModel(MODELS / f"{FORECAST_MODEL}.onnx").manifest

    assert (MODELS / f"{FORECAST_MODEL}.onnx").stat().st_size < 30_000
    assert (manifest.inputs[0].model_extra or {})["labels"] == ["accel x", "accel y", "accel z"]
    assert manifest.feedback == {"motion": {"output": "next", "std": "spread"}}


@pytest.mark.slow
def test_recordings_are_sent_as_streams_also_after_somebody_has_reset_one(short_path: Path) -> None:
    with service_process(MODELS, short_path) as one, Client(one.url) as client:
        stream = client.model(FORECAST_MODEL).stream("wrist-3")

        def reset() -> None:  # whatever its position is
            httpx2.post(
                f"{one.url}/v1/models/{FORECAST_MODEL}/streams/wrist-3/reset", json={}, trust_env=False, timeout=30
            ).raise_for_status()

        async def send() -> None:
            sending = asyncio.create_task(send_motion(one.url, Recordings.load(), speed=0.5))
            try:
                await asyncio.to_thread(wait_until, lambda: stream.resume() > 2, 60)
                await asyncio.to_thread(reset)
                await asyncio.to_thread(wait_until, lambda: stream.resume() > 5, 60)
                assert not sending.done()
            finally:
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sending

        asyncio.run(send())
