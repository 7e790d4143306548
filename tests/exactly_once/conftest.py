"""The server and the model that all runs of a state machine share."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwell.models.registry import ModelRegistry
from stepwell_export.runtime.step_model import StepModel
from tests.exactly_once.machines import Shared
from tests.graphs import fold, write_models
from tests.servers import server


@pytest.fixture(scope="module")
def shared() -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="sw") as folder, server(Path(folder) / "r") as Shared.server:
        Shared.shelf = ModelRegistry([write_models(Path(folder) / "models", fold=fold)], StepModel)
        assert not asyncio.run(Shared.shelf.reload()).failed
        yield
