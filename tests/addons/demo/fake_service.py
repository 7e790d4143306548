"""A minimal service of one model for tests of the replay, with faults that can be switched on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import uvicorn
from fastapi import FastAPI, WebSocket
from fastapi.responses import JSONResponse

from stepwell.addons.demo.recordings import MODEL, MODELS
from stepwell_client.wire.formats import MSGPACK, encode_tensors
from stepwell_export.runtime.step_model import StepModel


def problem(code: str, detail: str) -> dict[str, Any]:
    """Return a problem that a retry does not solve."""
    return {"code": code, "detail": detail, "applied": "no", "retry": "never"}


@dataclass
class FakeService:
    """Answers as the service does, with the demo's real model; `shift` is added to each prediction."""

    shift: float = 0.0
    refuses: bool = False
    resets: list[str] = field(default_factory=list)
    steps: dict[str, list[int]] = field(default_factory=dict)

    def app(self) -> FastAPI:
        model = StepModel(MODELS / f"{MODEL}.onnx")
        states: dict[str, dict[str, Any]] = {}
        app = FastAPI()

        @app.get(f"/v1/models/{MODEL}")
        def describe() -> dict[str, Any]:
            return model.manifest.model_dump(mode="json") | {"version": 1, "fingerprint": model.fingerprint.hex()}

        @app.get("/v1/info")
        def info() -> dict[str, Any]:
            return {"durability": "replica"}

        @app.get(f"/v1/models/{MODEL}/streams/{{stream}}")
        def status(stream: str) -> JSONResponse:
            return JSONResponse(problem("stream_not_found", f"there is no {stream}"), 404)

        @app.post(f"/v1/models/{MODEL}/streams/{{stream}}/peek")
        def peek(stream: str) -> dict[str, Any]:
            return {"step": 1, "outputs": {}}

        @app.post(f"/v1/models/{MODEL}/streams/{{stream}}/reset")
        def reset(stream: str) -> dict[str, Any]:
            states[stream] = model.initial_states(1)
            self.resets.append(stream)
            return {"step": 0, "state_id": "0" * 32}

        @app.websocket(f"/v1/models/{MODEL}/feed")
        async def feed(websocket: WebSocket) -> None:
            await websocket.accept("stepwell.msgpack")
            async for body in websocket.iter_bytes():
                message = msgspec.msgpack.decode(body)
                stream, seq = message["stream"], message["seq"]
                self.steps.setdefault(stream, []).append(seq)
                if self.refuses:
                    answer: dict[str, Any] = {"error": problem("bad_input", "motion has 5 elements")}
                else:
                    rows = {
                        name: np.frombuffer(row["b"], row["d"]).reshape(1, *row["s"])
                        for name, row in message["inputs"].items()
                    }
                    outputs, states[stream] = model.step(rows, states[stream])
                    given = {name: row[0] + np.float32(self.shift) for name, row in outputs.items()}
                    answer = {"outputs": encode_tensors(given, MSGPACK), "step": seq, "state_id": f"{seq:032x}"}
                await websocket.send_bytes(msgspec.msgpack.encode({"stream": stream, "id": message["id"], **answer}))

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
