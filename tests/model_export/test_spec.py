"""`StepSpec`: one of two forms, and light to import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from stepwell_export import Manifest, StepModel, StepSpec
from stepwell_export.runtime.errors import ManifestError

ONE = {"x": [[0.0]]}


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"inputs": {}}, "no inputs"),
        ({"inputs": ONE}, "neither states nor a time_axis"),
        ({"inputs": ONE, "states": {"h": 0}, "time_axis": 1}, "both states and a time_axis"),
        ({"inputs": [[0.0]], "time_axis": 1}, "inputs are of type list; expected a dict"),
        ({"inputs": {0: [0.0]}, "time_axis": 1}, "inputs are named [0]"),
        ({"inputs": ONE, "states": 3}, "states are of type int"),
        ({"inputs": ONE, "time_axis": "time"}, "time_axis is 'time'; expected a whole number"),
        ({"inputs": ONE, "time_axis": 1, "output_names": "y"}, "output_names are 'y'; expected a list"),
    ],
)
def test_anything_else_is_refused(parts: dict[str, Any], told: str) -> None:
    with pytest.raises(ManifestError) as caught:
        StepSpec("module", **parts)

    assert told in caught.value.problem


def test_the_package_gives_its_nouns_and_no_others() -> None:
    import stepwell_export

    assert (Manifest.__name__, StepModel.__name__) == ("Manifest", "StepModel")
    with pytest.raises(AttributeError):
        _ = stepwell_export.StepThing  # type: ignore[attr-defined]


def test_a_training_script_imports_no_runtime_with_it() -> None:
    heavy = "{'onnxruntime', 'keras', 'torch'}"
    code = f"import sys; from stepwell_export import StepSpec; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
