"""A running service with a history, for the tests of one file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="onnx is not installed; the extra keras has it")

from tests.graphs import fold, lstm, two_inputs, write_models
from tests.processes import ServiceProcess, service_process


@pytest.fixture(scope="module")
def models() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        yield write_models(Path(name) / "models", fold, lstm, two_inputs)


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[ServiceProcess]:
    with (
        tempfile.TemporaryDirectory(prefix="sw") as name,
        service_process(
            models, Path(name) / "one", "--drain-s", "0", "--history", "lstm=500", "--history", "two_inputs=500"
        ) as one,
    ):
        yield one
