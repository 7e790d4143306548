"""A running service with some models, for the tests of one file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.graphs import fold, fold_on_a_grid, lstm, total, write_model
from tests.processes import ServiceProcess, service_process


@pytest.fixture(scope="module")
def models() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        for model, build in (("fold", fold), ("lstm", lstm), ("total", total), ("grid", fold_on_a_grid)):
            write_model(Path(name) / "models", model, build)
        yield Path(name) / "models"


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[ServiceProcess]:
    with (
        tempfile.TemporaryDirectory(prefix="sw") as name,
        service_process(models, Path(name) / "one", "--drain-s", "0") as one,
    ):
        yield one
