"""A minimal service of one model for tests of the replay, with faults that can be switched on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, WebSocket

from model_export.step_model import StepModel
from service.demo.recordings import MODEL, MODELS


@dataclass
class FakeService:
    """Answers as the service does, with the demo's real model; `shift` is added to each prediction."""

    shift: float = 0.0
    refuses: bool = False
    hangs_up: bool = False
    resets: list[str] = field(default_factory=list)
    steps: dict[str, list[int]] = field(default_factory=dict)

    def app(self) -> FastAPI:
        model = StepModel(MODELS / f"{MODEL}.onnx")
        states: dict[str, dict[str, Any]] = {}
        app = FastAPI()

        @app.get(f"/v1/models/{MODEL}")
        def describe() -> dict[str, Any]:
            manifest = model.manifest.model_dump(mode="json")
            return {"inputs": manifest["inputs"], "outputs": manifest["outputs"], "parity": manifest["verified"]}

        @app.post(f"/v1/models/{MODEL}/streams/{{stream}}/reset")
        def reset(stream: str) -> dict[str, Any]:
            states[stream] = model.initial_states(1)
            self.resets.append(stream)
            return {"step": 0}

        @app.websocket(f"/v1/models/{MODEL}/feed")
        async def feed(websocket: WebSocket) -> None:
            await websocket.accept("stepwell.json")
            async for message in websocket.iter_json():
                stream, seq = message["stream"], message["seq"]
                if self.hangs_up:
                    await websocket.close(1012, "draining")
                    break
                self.steps.setdefault(stream, []).append(seq)
                if self.refuses:
                    answer: dict[str, Any] = {"error": {"code": "bad_input", "detail": "motion has 5 elements"}}
                else:
                    rows = {name: np.asarray([row], np.float32) for name, row in message["inputs"].items()}
                    outputs, states[stream] = model.step(rows, states[stream])
                    given = {name: (row[0] + self.shift).tolist() for name, row in outputs.items()}
                    answer = {"outputs": given, "step": seq}
                await websocket.send_json({"stream": stream, "id": message["id"], **answer})

        return app

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serve on a free port of loopback; yields the URL."""
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(self.app(), log_level="error", lifespan="off", ws="websockets-sansio"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
