"""FastAPI's own empty endpoint: a pydantic model in, a response model out, and nothing done. The measure of all."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Step(BaseModel):
    """What a client of a stepping service sends."""

    inputs: dict[str, list[float]]
    seq: int


class Answer(BaseModel):
    """What it would get."""

    outputs: dict[str, list[float]]
    step: int
    state_id: str


app = FastAPI()


@app.post("/v1/models/{model}/streams/{stream}/step")
async def step(model: str, stream: str, body: Step) -> Answer:
    """Answer without doing anything."""
    return Answer(outputs={"y": [0.0]}, step=body.seq, state_id="AAAAAAAAAAAAAAAAAAAAAA")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False, timeout_keep_alive=75)
