"""A translation between versions whose states have the same names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stepwell.addons.releases.translations import Translation
from stepwell_export.runtime.step_model import StepModel
from tests.addons.releases.builds import widening_lstm
from tests.graphs import lstm, write_model


def test_an_output_may_have_the_name_of_the_new_states_output(tmp_path: Path) -> None:
    old = StepModel(write_model(tmp_path, "old", lstm))
    new = StepModel(write_model(tmp_path, "new", lambda: lstm(units=12)))
    widen = widening_lstm()

    states = Translation(widen, old, new)({name: np.ones((1, 8), np.float32) for name in ("h", "c")})

    assert states["h"].tolist() == states["c"].tolist() == [[1.0] * 8 + [0.0] * 4]
