"""A naive service: FastAPI, GET the state, run the model, SET the state. Durable, but neither safe nor fast.

Nothing is checked: concurrent requests or a retry corrupt the stream.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort
import redis.asyncio as redis
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Step(BaseModel):
    """A timestep."""

    inputs: dict[str, list[float]]
    seq: int


class Answer(BaseModel):
    """A prediction."""

    outputs: dict[str, list[float]]
    step: int


app = FastAPI()
session: ort.InferenceSession
store: redis.Redis


@app.post("/v1/models/{model}/streams/{stream}/step")
async def step(model: str, stream: str, body: Step) -> Answer:
    """Load the state, run the model, store the state."""
    raw: bytes | None = await store.get(f"{model}:{stream}")  # type: ignore[assignment]  # decode_responses is off
    flat = np.zeros((2, 1, 64), np.float32) if raw is None else np.frombuffer(raw, np.float32).reshape(2, 1, 64)
    states = [i.name for i in session.get_inputs() if i.name != "x"]
    feeds = {"x": np.array([body.inputs["x"]], np.float32), **dict(zip(states, flat, strict=True))}
    y, *after = session.run(["y", *(f"{name}_next" for name in states)], feeds)
    await store.set(f"{model}:{stream}", np.stack(after).tobytes())
    return Answer(outputs={"y": y[0].tolist()}, step=body.seq)


if __name__ == "__main__":
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
    store = redis.Redis(unix_socket_path=sys.argv[3], max_connections=1000)
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False, timeout_keep_alive=75)
