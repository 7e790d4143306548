"""`GrpcSettings`: the port of gRPC, which is held for the workers."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Annotated, Final

from pydantic import Field

from stepwell.process.server import StartError
from stepwell.settings import AddonSettings, Settings
from stepwell_export.runtime.errors import MissingExtraError

_PACKAGES: Final = ("grpc", "google.protobuf", "grpc_health", "grpc_reflection")


class GrpcSettings(AddonSettings):
    """The settings of gRPC."""

    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port of the Open Inference Protocol over gRPC, on the same host; 0: a free one. Needs the extra grpc. Unset: no
    gRPC."""

    def check(self, settings: Settings) -> None:
        """Check that grpcio is installed, if there is a port for it.

        Raises:
            MissingExtraError: It is not, or one of its packages.
        """
        if self.grpc_port is None or not (missing := missing_packages()):
            return
        raise MissingExtraError(
            f"`grpc_port` is {self.grpc_port}, and the packages of gRPC are not installed: no {', '.join(missing)}.",
            fix="Install them: pip install 'stepwell[grpc]', in a clone STEPWELL_EXTRAS=grpc. Or leave `grpc_port` "
            "out.",
        )

    @contextlib.contextmanager
    def reserved(self, settings: Settings) -> Iterator[GrpcSettings]:
        """Yield settings with a port that no other program can use while the block runs.

        Each worker listens on it with SO_REUSEPORT, and the kernel distributes connections among them. The socket of
        this process is bound and does not listen, so it gets none.

        Raises:
            StartError: The port is in use, or this process may not bind it.
        """
        if self.grpc_port is None:
            yield self
            return
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family) as first, socket.socket(family) as held:
            # First without SO_REUSEPORT: with it, another service of this user would share its connections with this.
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                first.bind((settings.host, self.grpc_port))
                port: int = first.getsockname()[1]
                first.close()
                held.bind((settings.host, port))
            except OSError as exc:
                raise StartError(
                    f"Cannot listen on {settings.host}:{self.grpc_port} for gRPC: {exc.strerror or exc}.",
                    fix="End what uses the port, or choose another with --grpc-port.",
                ) from exc
            yield self.model_copy(update={"grpc_port": port})

    def addresses(self, settings: Settings) -> Mapping[str, str]:
        """Return the address of gRPC, if there is a port for it."""
        return {} if self.grpc_port is None else {"gRPC": f"{settings.url_host}:{self.grpc_port}"}


def missing_packages() -> list[str]:
    """Return the packages of the extra grpc that are not installed."""
    return [name for name in _PACKAGES if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False
