"""Runs of large graphs lie on disk, and read as they were."""

from __future__ import annotations

import numpy as np

from stepwell_export.streaming.axes.measured_shapes import spooled

VALUES = {
    "scores": np.arange(6e6, dtype=np.float32).reshape(2, 3, -1),
    "mask": np.arange(40_000).reshape(200, 200) % 3 == 0,
    "size": np.array([2, 3]),
    "parts": [np.zeros(2)],
}


def test_a_large_run_reads_as_it_was() -> None:
    found = spooled(VALUES)

    assert [name for name, value in found.items() if isinstance(value, np.memmap)] == ["scores", "mask"]
    assert list(found) == list(VALUES)
    assert found["parts"] is VALUES["parts"]
    for name in ("scores", "mask", "size"):
        np.testing.assert_array_equal(found[name], VALUES[name], strict=True)


def test_a_small_run_stays_in_memory() -> None:
    small = {"mask": VALUES["mask"]}

    assert spooled(small) is small
