"""Calls in Python with what is no name, axis, length, tolerance or model are refused in plain words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.exporter import export_source
from stepwell_export.runtime.errors import StepwellError, UnclearModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.spec import StepSpec
from stepwell_export.stages.pipeline import Pipeline
from stepwell_export.streaming import convert
from tests.model_export.streaming.zoo_parts import graph, ints


def running_sum() -> Any:
    return graph("(float[batch, time, 4] x) => (float[batch, time, 4] y) { y = CumSum (x, one) }", one=ints(1))


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "a_name_with_a_space": (lambda: convert(running_sum(), name="a b"), "The model's name would be 'a b'"),
    "an_axis_as_text": (
        lambda: convert(running_sum(), name="m", time_axes={"x": "1"}),  # type: ignore[dict-item]  # wrong
        "`--time-axis` has '1' for 'x'; expected a whole number",
    ),
    "a_length_and_a_half": (
        lambda: convert(running_sum(), name="m", length=2.5),  # type: ignore[arg-type]  # wrong
        "`--length` is 2.5; expected a whole number",
    ),
    "bytes_of_a_model": (
        lambda: convert(running_sum().SerializeToString(), name="m"),
        r"source is bytes; .*onnx.load_from_string",
    ),
    "a_grid_without_a_unit": (
        lambda: export_source(running_sum(), "x.onnx", every="5"),
        "`--every` is '5'; expected a duration",
    ),
    "a_tolerance_below_zero": (
        lambda: verify_model(convert(running_sum(), name="m"), atol=-1.0), "`--tolerance` is -1.0; expected a number",
    ),
    "a_tolerance_that_is_no_number": (
        lambda: verify_model(convert(running_sum(), name="m"), atol=float("nan")), "`--tolerance` is nan",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_that_is_none_is_refused(name: str) -> None:
    call, words = CALLS[name]

    with pytest.raises(UnclearModelError, match=words):
        call()


HOSTILE = (object(), 2.5, b"x", [1], {1: 2}, np.zeros(2), "x" * 3000, lambda: 1)
"""What hardly an argument may be."""


@pytest.mark.parametrize("argument", inspect.signature(export_source).parameters)
def test_an_argument_of_export_that_is_of_another_type_is_refused_and_never_a_traceback(
    argument: str, tmp_path: Path
) -> None:
    for number, given in enumerate(HOSTILE):
        call: dict[str, Any] = {"source": tmp_path / "none.onnx", "target": tmp_path / f"{number}.onnx"}

        with pytest.raises(StepwellError):
            export_source(**{**call, argument: given})


@pytest.mark.parametrize("argument", ["source", "name", "time_axes", "batch_axes", "constants", "length", "against"])
def test_an_argument_of_convert_onnx_that_is_of_another_type_is_refused_and_never_a_traceback(argument: str) -> None:
    for given in (object(), 2.5, b"x", [1], {1: 2}, np.zeros(2)):
        with pytest.raises(StepwellError):
            convert(**{"source": running_sum(), "name": "m", argument: given})


@pytest.mark.parametrize("given", [given for given in HOSTILE if not isinstance(given, list)])
def test_what_is_no_model_is_refused_by_what_takes_one(given: Any) -> None:
    for take in (StepModel, verify_model, Pipeline, lambda given: StepSpec(object(), inputs={"x": 1}, states=given)):
        with pytest.raises(StepwellError):
            take(given)
