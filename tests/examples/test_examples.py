"""Each example runs from any folder, and what the service answers is what Keras or PyTorch says."""

from __future__ import annotations

import re
import runpy
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.examples.runs import EXAMPLES, run

QUESTIONS = [
    pytest.param(path.stem, marks=pytest.mark.torch if path.stem.startswith("pytorch_") else ())
    for path in sorted(EXAMPLES.glob("*.py"))
    if path.stem not in {"live", "quickstart"}
]
LINE = re.compile(r"^largest difference from (?:Keras|PyTorch): (\S+) \(([\d,]+) numbers\)$", re.MULTILINE)


@dataclass(frozen=True)
class Ran:
    name: str
    folder: Path
    process: subprocess.CompletedProcess[str]

    @property
    def comparisons(self) -> list[tuple[float, int]]:
        """The largest difference, and how many numbers were compared."""
        return [(float(most), int(count.replace(",", ""))) for most, count in LINE.findall(self.process.stdout)]


@pytest.fixture(scope="module", params=QUESTIONS)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    if request.param.startswith("pytorch_") and not find_spec("torch"):
        pytest.skip("PyTorch is not installed (STEPWELL_EXTRAS=torch)")
    folder = tmp_path_factory.mktemp(request.param)
    return Ran(request.param, folder, run(str(EXAMPLES / f"{request.param}.py"), folder=folder))


NUMBERS = {
    "chunks_and_steps": [32 * 21 * 16] * 2,
    "forecast_interval": [2 * 48],
    "label_every_timestep": [3 * 10 * 2],
    "large_gru": [60],
    "priming": [20],
    "pytorch_causal_network": [60],
    "pytorch_lstm": [3 * 80],
    "pytorch_own_state": [2 * 40],
    "sentiment_so_far": [2 * 10],
    "text_classification": [3 * 3],
    "text_generation": [120 * 24] * 2,
    "text_rollout": [120 * 24] * 3,
}
"""How many predictions each example compares: all that it asked for."""


@pytest.mark.slow
def test_an_example_ends_well(ran: Ran) -> None:
    assert ran.process.returncode == 0, ran.process.stdout + ran.process.stderr


@pytest.mark.slow
def test_an_example_compares_every_prediction_with_the_original(ran: Ran) -> None:
    assert [count for _, count in ran.comparisons] == NUMBERS[ran.name]


@pytest.mark.slow
def test_an_example_agrees_with_the_original(ran: Ran) -> None:
    assert max(most for most, _ in ran.comparisons) <= 5e-6


@pytest.mark.slow
def test_an_example_leaves_nothing_in_the_folder_it_is_started_in(ran: Ran) -> None:
    assert list(ran.folder.iterdir()) == []


@pytest.mark.parametrize("served", [[0.50002], [float("nan")], [0.5, 0.5]])
def test_an_example_fails_where_a_prediction_is_not_that_of_the_original(served: list[float]) -> None:
    compare = runpy.run_path(str(EXAMPLES / "live.py"))["compare"]

    with pytest.raises(SystemExit, match="expected"):
        compare(served, np.array([0.5], np.float32))


def test_the_readme_leads_to_every_example_and_to_nothing_else() -> None:
    linked = re.findall(r"\]\(([\w/.]+)\)", (EXAMPLES / "README.md").read_text())

    assert sorted(linked) == sorted([*(path.name for path in EXAMPLES.glob("*.py")), "activity/README.md"])
