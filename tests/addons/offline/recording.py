"""A recording of several streams, what `fold` predicts for it, and the way of its states into a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import typer

from stepwell.addons.savepoints.command import load
from tests.api.running import Service
from tests.commands.program import invoke
from tests.graphs import fold_reference

N_STREAMS, N_STEPS = 5, 40


def recording(seed: int = 0) -> Any:
    """Rows of several streams in any order, with their times."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    rows = pd.DataFrame({
        "pump": np.repeat([f"p{n}" for n in range(N_STREAMS)], N_STEPS),
        "t": np.tile(np.arange(N_STEPS), N_STREAMS),
        "x": rng.integers(-1000, 1000, N_STREAMS * N_STEPS),
    })  # fmt: skip
    return rows.sample(frac=1, random_state=seed)


def expected(rows: Any) -> dict[str, list[int]]:
    """Return the predictions of each stream by the reference in Python."""
    return {
        str(name): fold_reference(of_stream.sort_values("t")["x"].tolist()) for name, of_stream in rows.groupby("pump")
    }


def found(rows: Any) -> dict[str, list[int]]:
    ordered = rows.sort_values(["stream", "step"])
    assert all(of["step"].tolist() == list(range(1, len(of) + 1)) for _, of in ordered.groupby("stream"))
    return {str(name): [int(y[0]) for y in of["y"]] for name, of in ordered.groupby("stream")}


def load_into(service: Service, file: Path) -> int:
    app = typer.Typer()
    app.command()(load)
    return invoke(app, [str(file), "--url", f"http://127.0.0.1:{service.port}"]).exit_code


def assert_states_go_on(service: Service, savepoint: Path, rows: Any) -> None:
    """Load a savepoint twice, and step each stream by one timestep more."""
    assert [load_into(service, savepoint) for _ in range(2)] == [0, 0]
    for name, predicted in expected(rows).items():
        answer = service.step("fold", name, {"x": [7]}, seq=N_STEPS + 1).json()
        assert (answer["outputs"]["y"], answer["step"]) == (fold_reference([7], start=predicted[-1]), N_STEPS + 1)
