"""`stepwell.resample`: equal to pandas' resample with the same rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import stepwell

pd = pytest.importorskip("pandas")


def readings(seed: int = 0, n: int = 400) -> Any:
    """Return a frame with times in no order, some twice, and values that are missing."""
    rng = np.random.default_rng(seed)
    times = (1_700_000_000_000_000 + rng.integers(0, 60_000_000, n) // 250_000 * 250_000).astype("datetime64[us]")
    values = {"x": rng.normal(size=n) * 1e6, "n": rng.integers(0, 99, n).astype(float)}
    values["x"][rng.random(n) < 0.2] = np.nan
    return pd.DataFrame(values, index=pd.DatetimeIndex(times, name="at"))


@pytest.mark.parametrize("take", ["last", "mean", "sum", "min", "max", "count"])
def test_it_is_equal_to_pandas(take: Any) -> None:
    frame, every = readings(), "700ms"
    grid = frame.sort_index(kind="stable").resample(every, closed="right", label="right", origin="epoch")
    expected = getattr(grid, take)().astype(float)
    expected = expected if take in ("sum", "count") else expected.ffill()

    found = stepwell.resample(frame, every=every, take=take)

    pd.testing.assert_frame_equal(found, expected, check_exact=True, check_freq=False, check_index_type=False)


@pytest.mark.parametrize("take", ["last", "mean", "sum", "min", "max", "count"])
def test_it_is_equal_to_pandas_where_nothing_is_missing_but_for_rounded_sums(take: Any) -> None:
    """Pandas 3 adds without Kahan's summation there."""
    frame = readings().dropna()
    grid = frame.sort_index(kind="stable").resample("1s", closed="right", label="right", origin="epoch")
    found, expected = stepwell.resample(frame, every="1s", take=take), getattr(grid, take)().astype(float)
    limit = 1e-9 if take in ("sum", "mean") else 0.0  # of sums of up to a dozen numbers of about 1e6
    np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=0, atol=limit)


def test_a_gap_has_no_rows_and_streams_are_resampled_by_themselves() -> None:
    frame = pd.DataFrame({"at": [0.5, 9.5, 0.2], "id": ["a", "a", "b"], "x": [1.0, 2.0, 3.0]})
    found = stepwell.resample(frame, every="1s", gap=2, time="at", stream="id", take={"x": "last"})
    assert found["id"].tolist() == ["a"] * 4 + ["b"]
    assert found["x"].tolist() == [1, 1, 1, 2, 3]
    assert [one.second for one in found.index] == [1, 2, 3, 10, 1]


def test_a_zone_is_kept() -> None:
    frame = pd.DataFrame({"x": [1.0]}, index=pd.DatetimeIndex(["2026-03-01T12:00:00+01:00"]))
    assert str(stepwell.resample(frame, every="1s").index[0]) == "2026-03-01 12:00:00+01:00"


@pytest.mark.parametrize("wrong", [{"every": "1"}, {"every": "1s", "take": "first"}, {"every": "1s", "fill": "ffill"}])
def test_an_unknown_rule_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(stepwell.StepwellError, match="expected"):
        stepwell.resample(readings(), **wrong)
