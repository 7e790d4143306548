"""A service with gRPC in a process of its own: grpcio's asyncio server is meant for one event loop per process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from tests.graphs import fold, last_seen, latch, latest, lstm, nan_at, slow, stateless, total, two_inputs, write_models
from tests.processes import ServiceProcess, free_port
from tests.servers import Server

if TYPE_CHECKING:
    from tests.addons.grpc_api.client import GrpcClient


class GrpcService(ServiceProcess):
    """A `stepwell serve` with `grpc_port`."""

    def __init__(self, models: Path, folder: Path, *flags: str, grpc_port: int | None = None) -> None:
        self.grpc_port = grpc_port or free_port()
        super().__init__(models, folder, "--grpc-port", str(self.grpc_port), *flags)

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Run it until the block ends."""
        try:
            yield self.start()
        finally:
            self.stop()


@pytest.fixture(scope="session")
def service(shared_redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcService]:
    """A running service with one small model of every kind."""
    folder = tmp_path_factory.mktemp("grpc")
    models = write_models(
        folder / "models",
        *(fold, two_inputs, latch, lstm, total, slow, stateless, last_seen),
        nan_at_3=lambda: nan_at(3),
        half=lambda: latest("float16"),
        double=lambda: latest("float64"),
    )
    one = GrpcService(models, folder, "--redis", shared_redis.url, "--max-body-bytes", "1000000", "--drain-s", "0")
    with one.running():
        yield one


@pytest.fixture
def client(service: GrpcService) -> Iterator[GrpcClient]:
    from tests.addons.grpc_api.client import GrpcClient

    one = GrpcClient(service.grpc_port)
    yield one
    one.close()
