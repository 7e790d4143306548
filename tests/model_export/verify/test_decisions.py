"""Something rare in the original that the step graph lacks is found, or makes the proof weak by name."""

from __future__ import annotations

import pytest

from model_export.errors import ParityError
from tests.model_export.verify import rare

FRAMEWORKS = [
    pytest.param("torch", marks=pytest.mark.torch),
    "keras",
    "onnx",
]


@pytest.mark.parametrize("case", rare.CASES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_rare_event_that_the_step_graph_lacks_is_found(framework: str, case: str) -> None:
    with pytest.raises(ParityError, match="first differs at timestep"):
        rare.compared(rare.ORIGINALS[framework](case))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_comparison_that_no_input_reaches_makes_the_proof_weak_by_name(framework: str) -> None:
    report = rare.compared(rare.ORIGINALS[framework]("out_of_reach"))

    assert report.weak
    assert any(reason.startswith("Greater") and "never true" in reason for reason in report.reasons)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_original_whose_decisions_go_both_ways_is_not_weak(framework: str) -> None:
    report = rare.compared(rare.ORIGINALS[framework]("nothing"))

    assert not report.weak
    assert report.parity.covered is not None
    assert report.parity.covered.decisions >= 1
