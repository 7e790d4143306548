"""An empty FastAPI endpoint with a pydantic request and response: the reference of all comparisons."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Step(BaseModel):
    """The request of a stepping service."""

    inputs: dict[str, list[float]]
    seq: int


class Answer(BaseModel):
    """The response of a stepping service."""

    outputs: dict[str, list[float]]
    step: int
    state_id: str


app = FastAPI()


@app.post("/v1/models/{model}/streams/{stream}/step")
async def step(model: str, stream: str, body: Step) -> Answer:
    """Return a constant answer."""
    return Answer(outputs={"y": [0.0]}, step=body.seq, state_id="AAAAAAAAAAAAAAAAAAAAAA")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False, timeout_keep_alive=75)
