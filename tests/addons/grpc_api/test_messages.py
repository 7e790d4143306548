"""The messages of the service are those of `inference.proto`, and those of Triton's client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.protobuf", reason="protobuf is not installed: STEPWELL_EXTRAS=grpc")


def test_the_compiled_descriptors_are_those_of_the_definitions(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed: pip install grpcio-tools")
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    from scripts.grpc_protocol.__main__ import FOLDER, compile_protocol

    compile_protocol(tmp_path / "compiled")
    kept, compiled = (
        FileDescriptorSet.FromString(file.read_bytes()) for file in (FOLDER / "inference.binpb", tmp_path / "compiled")
    )

    assert kept == compiled, "run python -m scripts.grpc_protocol"


def fields_of(message: Any) -> dict[int, tuple[str, int, bool]]:
    return {one.number: (one.name, one.type, one.is_repeated) for one in message.fields}


def test_fields_have_the_numbers_and_types_of_tritons_client() -> None:
    """And both can be imported together, although their messages have the same names."""
    pb2 = pytest.importorskip(
        "tritonclient.grpc.service_pb2", reason="tritonclient[grpc] is not installed: STEPWELL_EXTRAS=triton"
    )
    from tritonclient.grpc import model_config_pb2

    from stepwell.addons.grpc_api.messages import POOL

    theirs = {**pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    ours = POOL.FindFileByName("inference.proto").message_types_by_name
    pairs = [(message, theirs[name]) for name, message in ours.items()]
    compared = 0
    while pairs:
        mine, other = pairs.pop()
        found, expected = fields_of(mine), fields_of(other)
        assert found.items() <= expected.items(), mine.full_name
        pairs += [(one, other.nested_types_by_name[one.name]) for one in mine.nested_types]
        compared += 1

    assert compared > 40
