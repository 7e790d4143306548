"""grpcio's asyncio server with methods that do nothing: what a service over gRPC in Python needs for a call or message.

It responds with a constant prediction; a stream's response has the id of its request, by which the client finds it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from stepwell.addons.grpc_api.messages import SERVICE, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse

_RESPONSE = ModelInferResponse(model_name="bench", model_version="1", id="0", raw_output_contents=[bytes(4)])
_RESPONSE.outputs.add(name="y", datatype="FP32", shape=(1, 1))
_ENCODED: bytes = _RESPONSE.SerializeToString()


async def infer(_request: bytes, _rpc: Any) -> bytes:
    """Respond to a call of `ModelInfer`; nothing is decoded."""
    return _ENCODED


async def stream_infer(requests: AsyncIterator[bytes], _rpc: Any) -> AsyncIterator[bytes]:
    """Respond to the messages of a call of `ModelStreamInfer`, one after the other."""
    async for request in requests:
        response = ModelStreamInferResponse(infer_response=_RESPONSE)
        response.infer_response.id = ModelInferRequest.FromString(request).id
        yield response.SerializeToString()


async def main(port: int) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    handlers = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(infer),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(stream_infer),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
