"""Short measurements in every export of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest

from stepwell_export.chunk import selection


@pytest.fixture(scope="module", autouse=True)  # for these tests alone: others run in the same process
def short_measurements() -> Iterator[None]:
    """Measure chunks for a hundredth of the time: the measurement decides nothing, and took a third of most exports."""
    with patch.object(selection, "_BUDGET_S", selection._BUDGET_S / 100):
        yield
