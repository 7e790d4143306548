"""Labels and units go into the manifest, where they fit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stepwell_export.labels import read_columns, read_labels, with_labels
from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.manifest import Manifest
from tests import graphs


def test_labels_and_units_are_kept_through_json() -> None:
    manifest = with_labels(graphs.total()[1], {"x": ["up", "down"]}, {"y": ["mm"]})
    again = Manifest.from_json(manifest.to_json(), where="here").model_dump()

    assert again["inputs"][0]["labels"] == ["up", "down"]
    assert again["outputs"][0]["unit"] == "mm"
    assert "unit" not in again["inputs"][0]


def test_units_of_each_number_are_kept_as_a_list() -> None:
    manifest = with_labels(graphs.total()[1], units={"x": ["C", "kPa"]})
    again = Manifest.from_json(manifest.to_json(), where="here").model_dump()

    assert again["inputs"][0]["unit"] == ["C", "kPa"]


@pytest.mark.parametrize(
    ("labels", "units", "told"),
    [
        ({"z": ["a", "b"]}, {}, "`--labels` names 'z'; the model has x, y"),
        ({}, {"z": "mm"}, "`--units` names 'z'"),
        ({}, {"x": ["C", "kPa", "rpm"]}, "gives 'x' 3 units; a row of it has 2 numbers"),
        ({}, {"x": ["C", ""]}, "A unit of 'x' is empty"),
        ({"x": ["a"]}, {}, "gives 'x' 1 labels; a row of it has 2 numbers"),
        ({"x": ["a", "a"]}, {}, "expected texts that differ"),
        ({"x": ["a", ""]}, {}, "expected texts that differ"),
    ],
)
def test_what_does_not_fit_is_refused(labels: Any, units: Any, told: str) -> None:
    with pytest.raises(UnclearModelError) as caught:
        with_labels(graphs.total()[1], labels, units)

    assert told in caught.value.problem


def test_names_that_a_model_has_are_its_labels_where_they_fit() -> None:
    model = SimpleNamespace(feature_names_in_=np.array(["up", "down"]), classes_=["a", "b", "c"])

    assert read_labels(model, graphs.total()[1]) == {"x": ["up", "down"]}
    assert read_labels(object(), graphs.total()[1]) == {}


@pytest.mark.parametrize(
    ("example", "names"),
    [(SimpleNamespace(columns=["a", "b"]), ["a", "b"]), (SimpleNamespace(columns=["a", "a"]), []), (np.zeros(3), [])],
)
def test_columns_are_those_of_a_data_frame(example: Any, names: list[str]) -> None:
    assert read_columns(example) == names
