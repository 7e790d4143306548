"""What is rare in a graph is refused, though no compared sequence shows it."""

from __future__ import annotations

import pytest

from stepwell_export.converted import verify_model
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.streaming import convert
from tests.model_export.streaming.hostile import HOSTILE


@pytest.mark.parametrize("name", HOSTILE)
def test_a_graph_with_something_rare_is_refused(name: str) -> None:
    with pytest.raises(StepwellError):
        verify_model(convert(HOSTILE[name](), name="rare"))
