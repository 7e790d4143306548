"""The messages of the gRPC service, from the descriptors that `inference.proto` was compiled to.

They are in a descriptor pool of their own: a program that also imports Triton's client has messages of the same names
in the default pool, which accepts each name once.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

Message = Any
"""An instance of a message class; the classes are made when the service starts, so they have no static types."""


def _build_pool(copied: Iterable[FileDescriptor]) -> DescriptorPool:
    """Return a pool with our descriptors and copies of others, so that reflection finds all in one pool."""
    pool = DescriptorPool()
    compiled = FileDescriptorSet.FromString((Path(__file__).parent / "inference.binpb").read_bytes())
    for file in compiled.file:
        pool.Add(file)
    for other in copied:
        file = FileDescriptorProto()
        other.CopyToProto(file)
        pool.Add(file)
    return pool


POOL: Final = _build_pool((health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR))
SERVICE: Final = POOL.FindServiceByName("inference.GRPCInferenceService")
HEALTH_SERVICE: Final = "grpc.health.v1.Health"


def message_class(name: str) -> Any:
    """Return the class of a message of the protocol."""
    return GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


ModelInferRequest: Final = message_class("ModelInferRequest")
ModelInferResponse: Final = message_class("ModelInferResponse")
ModelStreamInferResponse: Final = message_class("ModelStreamInferResponse")
