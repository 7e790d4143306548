"""A common first version: FastAPI with a Keras model, and each stream's state in a dictionary of the process.

All states are lost when the process ends, and a second process would have other states.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported, whose own default is TensorFlow

import keras
import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from stepwell_export.runtime.manifest import Array


class Step(BaseModel):
    """A timestep."""

    inputs: dict[str, list[float]]
    seq: int


class Answer(BaseModel):
    """A prediction."""

    outputs: dict[str, list[float]]
    step: int


app = FastAPI()
model: Any
zeros: list[Array]
states: dict[str, list[Array]] = {}


@app.post("/v1/models/{name}/streams/{stream}/step")
async def step(name: str, stream: str, body: Step) -> Answer:
    """Run one timestep from the stream's state."""
    x = np.array([body.inputs["x"]], np.float32)
    y, *states[stream] = model.predict_on_batch([x, *states.get(stream, zeros)])
    return Answer(outputs={"y": y[0].tolist()}, step=body.seq)


if __name__ == "__main__":
    trained = keras.saving.load_model(sys.argv[2])
    lstm, dense = trained.get_layer("lstm"), trained.get_layer("y")
    x, h, c = keras.Input((8,)), keras.Input((64,)), keras.Input((64,))
    out, (h_next, c_next) = lstm.cell(x, [h, c])
    model = keras.Model([x, h, c], [dense(out), h_next, c_next])
    zeros = [np.zeros((1, 64), np.float32), np.zeros((1, 64), np.float32)]
    model.predict_on_batch([np.zeros((1, 8), np.float32), *zeros])  # compiles
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False, timeout_keep_alive=75)
