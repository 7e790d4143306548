"""`reserve_grpc_port`: holds the port of gRPC for the workers, after checking that what they need is installed."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Final

from stepwell.process.server import StartError
from stepwell.settings import Settings
from stepwell_export.runtime.errors import MissingExtraError

_PACKAGES: Final = ("grpc", "google.protobuf", "grpc_health", "grpc_reflection")


def check_grpc(settings: Settings) -> None:
    """Check that grpcio is installed, if `grpc_port` is set.

    Raises:
        MissingExtraError: It is not, or one of its packages.
    """
    if settings.grpc_port is None or not (missing := missing_packages()):
        return
    raise MissingExtraError(
        f"`grpc_port` is {settings.grpc_port}, and the packages of gRPC are not installed: no {', '.join(missing)}.",
        fix="Install them: pip install 'stepwell[grpc]', in a clone STEPWELL_EXTRAS=grpc. Or leave `grpc_port` out.",
    )


def missing_packages() -> list[str]:
    """Return the packages of the extra grpc that are not installed."""
    return [name for name in _PACKAGES if not _is_installed(name)]


@contextlib.contextmanager
def reserve_grpc_port(settings: Settings) -> Iterator[Settings]:
    """Yield settings whose `grpc_port` is a port that no other program can use while the block runs.

    Each worker listens on it with SO_REUSEPORT, and the kernel distributes connections among them. The socket of this
    process is bound and does not listen, so it gets none.

    Raises:
        StartError: The port is in use, or this process may not bind it.
    """
    if settings.grpc_port is None:
        yield settings
        return
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as first, socket.socket(family) as held:
        # First without SO_REUSEPORT: with it, another service of this user would share its connections with this one.
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            first.bind((settings.host, settings.grpc_port))
            port: int = first.getsockname()[1]
            first.close()
            held.bind((settings.host, port))
        except OSError as exc:
            raise StartError(
                f"Cannot listen on {settings.host}:{settings.grpc_port} for gRPC: {exc.strerror or exc}.",
                fix="End what uses the port, or choose another with --grpc-port.",
            ) from exc
        yield settings.model_copy(update={"grpc_port": port})


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False
