"""Recurrent models that are replaced: retrained, by another architecture, and by a wider one; exact to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.addons.releases.builds import gru
from tests.addons.releases.fleet import MODEL, Fleet, fleet
from tests.graphs import Build, lstm, write_model
from tests.servers import Server

WARM_STEPS = 100
XS = np.random.default_rng(4).normal(size=(WARM_STEPS + 60, 4)).astype(np.float32)
JOINED = 20


class Reference:
    """One version, run alone; it has the states of one stream."""

    def __init__(self, folder: Path, build: Build) -> None:
        self.model = StepModel(write_model(folder, MODEL, build))
        self.states = self.model.initial_states(1)

    def step(self, x: Array) -> list[float]:
        """Consume a timestep, and return the prediction."""
        outputs, self.states = self.model.step({"x": x[None]}, self.states)
        found: list[float] = outputs["y"][0].tolist()
        return found


def step_all(releases: Fleet, xs: Array, first: int) -> list[Any]:
    """Step one stream through inputs, the first of which has this number."""
    return [releases.step("s", x.tolist(), seq=first + i) for i, x in enumerate(xs)]


def ys_of(answers: list[Any]) -> list[list[float]]:
    found: list[list[float]] = np.array([answer["outputs"]["y"] for answer in answers], np.float32).tolist()
    return found


def test_a_gru_in_place_of_an_lstm_answers_no_stream_before_it_has_seen_its_warm_steps(
    redis_server: Server, tmp_path: Path
) -> None:
    old, new = Reference(tmp_path / "old", lstm), Reference(tmp_path / "new", gru)
    with fleet(redis_server.url, tmp_path / "models", lstm, gru) as releases:
        answers = step_all(releases, XS[:JOINED], 1)
        releases.put(candidate=2, mode="ramp", percent=100, take="reset", warm_steps=WARM_STEPS)
        answers += step_all(releases, XS[JOINED:80], JOINED + 1)
        releases.end("promote")  # the stream stays a pair until its candidate is warm
        answers += step_all(releases, XS[80:], 81)

    before = [old.step(x) for x in XS[: JOINED + WARM_STEPS]]
    after = [new.step(x) for x in XS[JOINED:]]
    assert ys_of(answers) == before + after[WARM_STEPS:]
    assert [i for i, answer in enumerate(answers) if "version" in answer] == [JOINED + WARM_STEPS]
