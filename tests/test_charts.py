"""`line_chart` draws what it is given, and nothing that is not there."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest

from stepwell.addons.charts import line_chart

SVG = "{http://www.w3.org/2000/svg}"


def paths(svg: str) -> dict[str, str]:
    """Return the path of each line by its name."""
    found = {}
    for path in ET.fromstring(svg).iter(f"{SVG}path"):
        title = path.find(f"{SVG}title")
        if title is not None:
            found[str(title.text)] = path.attrib["d"]
    return found


def test_a_line_goes_through_every_value() -> None:
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", paths(line_chart("y", {"a": [0, 10, 5]}))["a"])

    x, y = zip(*((float(x), float(y)) for x, y in points), strict=True)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1])
    assert y[1] < y[2] < y[0]  # upwards is smaller in a picture
    assert y[2] == pytest.approx((y[0] + y[1]) / 2)


def test_a_value_that_is_not_finite_is_a_gap() -> None:
    assert paths(line_chart("y", {"a": [1, 2, math.nan, 3, 4]}))["a"].count("M") == 2


@pytest.mark.parametrize("lines", [{}, {"a": []}, {"a": [1.0]}, {"a": [2.0, 2.0]}, {"a": [math.nan]}])
def test_few_equal_and_no_values_are_a_picture_too(lines: dict[str, list[float]]) -> None:
    assert set(paths(line_chart("y", lines))) == set(lines)


def test_a_long_line_has_at_most_a_thousand_points() -> None:
    assert len(re.findall("[ML]", paths(line_chart("y", {"a": range(123_456)}))["a"])) <= 1000


def test_names_are_escaped() -> None:
    assert set(paths(line_chart("<y>", {"<a> & b": [1, 2]}))) == {"<a> & b"}
