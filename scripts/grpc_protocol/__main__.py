"""`python -m scripts.grpc_protocol` compiles `inference.proto` to the descriptors that the service loads."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "service" / "stepwell" / "addons" / "grpc_api"


def compile_protocol(target: Path) -> None:
    """Write the descriptors of `inference.proto` to a file.

    Raises:
        SystemExit: grpcio-tools is not installed, or the file has an error.
    """
    try:
        from grpc_tools import protoc
    except ImportError:
        sys.exit("grpcio-tools is not installed: pip install grpcio-tools")
    code = protoc.main(["protoc", f"--proto_path={FOLDER}", f"--descriptor_set_out={target}", "inference.proto"])
    if code:
        sys.exit(code)


if __name__ == "__main__":
    compile_protocol(FOLDER / "inference.binpb")
