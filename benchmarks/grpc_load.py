"""Load over gRPC, with the messages that Triton's client sends; a kind of `client_load.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np

from benchmarks.workload import FEATURES
from stepwell.addons.grpc_api.messages import SERVICE, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from stepwell_export.runtime.manifest import Array

Step = Callable[[int, Array], Awaitable[float]]
_MODEL = "bench"
CALLS = 4  # stream calls, each with a part of the streams


def infer_request(stream: int, row: Array, *, start: bool) -> Any:
    """Return the `ModelInferRequest` of a timestep."""
    request = ModelInferRequest(model_name=_MODEL, id=str(stream))
    request.parameters["sequence_id"].string_param = f"g-{stream}"
    request.parameters["sequence_start"].bool_param = start
    request.inputs.add(name="x", datatype="FP32", shape=(1, FEATURES))
    request.raw_input_contents.append(row.astype("<f4").tobytes())
    return request


def prediction(response: Any) -> float:
    """Return the prediction of a `ModelInferResponse`."""
    return float(np.frombuffer(response.raw_output_contents[0], "<f4")[0])


async def unary(port: int, streams: int, run: Callable[[Step], Awaitable[None]]) -> None:
    """Step each stream by calls of `ModelInfer`, all over one connection."""
    started: set[int] = set()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer = channel.unary_unary(
            f"/{SERVICE.full_name}/ModelInfer", ModelInferRequest.SerializeToString, ModelInferResponse.FromString
        )

        async def step(stream: int, row: Array) -> float:
            request = infer_request(stream, row, start=stream not in started)
            started.add(stream)
            return prediction(await infer(request))

        await run(step)


async def streaming(port: int, streams: int, run: Callable[[Step], Awaitable[None]]) -> None:
    """Step the streams over a few calls of `ModelStreamInfer`."""
    started: set[int] = set()
    waiting: dict[str, asyncio.Future[float]] = {}

    async def receive(call: Any) -> None:
        async for response in call:
            assert not response.error_message, response.error_message
            waiting.pop(response.infer_response.id).set_result(prediction(response.infer_response))

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer = channel.stream_stream(
            f"/{SERVICE.full_name}/ModelStreamInfer",
            ModelInferRequest.SerializeToString,
            ModelStreamInferResponse.FromString,
        )
        calls = [infer() for _ in range(min(CALLS, streams))]
        readers = [asyncio.create_task(receive(call)) for call in calls]
        locks = [asyncio.Lock() for _ in calls]  # a call accepts one write at a time

        async def step(stream: int, row: Array) -> float:
            request = infer_request(stream, row, start=stream not in started)
            started.add(stream)
            future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            waiting[str(stream)] = future
            at = stream % len(calls)
            async with locks[at]:
                await calls[at].write(request)
            return await future

        await run(step)
        for call in calls:
            await call.done_writing()
        await asyncio.gather(*readers)
