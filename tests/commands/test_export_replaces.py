"""`stepwell export --replaces`: what the report shows of states, and the translation that is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from stepwell_export.runtime.step_model import StepModel
from tests.commands.program import run_stepwell

keras = pytest.importorskip("keras", reason="Keras is not installed")

_WIDEN = '''
"""Appends zeros to each state, as far as the new one is longer."""
from onnx import TensorProto, helper

def widen(old, new):
    nodes, inputs, outputs = [], [], []
    for before, after in zip(old.states, new.states, strict=True):
        name, pads = after.output, f"{after.input}.pads"
        inputs.append(helper.make_tensor_value_info(before.input, TensorProto.FLOAT, ["B", *before.shape]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *after.shape]))
        more = helper.make_tensor(pads, TensorProto.INT64, [4], [0, 0, 0, after.shape[0] - before.shape[0]])
        nodes.append(helper.make_node("Constant", [], [pads], value=more))
        nodes.append(helper.make_node("Pad", [before.input, pads], [name]))
    graph = helper.make_graph(nodes, "widen", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

def nothing():
    return 7
'''


def export(folder: Path, version: int, units: int, *words: object) -> Any:
    """Export an LSTM as a version of a model; returns the result of the command."""
    keras.utils.set_random_seed(version)
    layers = [keras.Input((None, 2), name="x"), keras.layers.LSTM(units, name="lstm"), keras.layers.Dense(1, name="y")]
    source = folder / f"{version}.keras"
    keras.Sequential(layers).save(source)
    return run_stepwell("export", source, "-o", folder / "pump" / str(version) / "model.onnx", *words)


def old(folder: Path, version: int = 1) -> Path:
    return folder / "pump" / str(version) / "model.onnx"


@pytest.mark.slow
def test_a_wider_model_is_incompatible_unless_a_translation_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "widening.py").write_text(_WIDEN)
    monkeypatch.chdir(tmp_path)
    export(tmp_path, 1, 4)

    alone = export(tmp_path, 2, 6, "--replaces", old(tmp_path))
    given = export(tmp_path, 3, 6, "--replaces", old(tmp_path), "--translate", "widening:widen", "--json")

    assert alone.exit_code == 0
    assert "states:  incompatible with version 1" in alone.stdout
    report = json.loads(given.stdout)["replaces"]
    translation = tmp_path / "pump" / "3" / "translate-from-1.onnx"
    assert (report["states"], report["version"], report["translation"]) == ("translate", 1, str(translation))
    assert report["reasons"]
    states = StepModel(old(tmp_path)).initial_states(2)
    ones = {name: np.ones_like(array) for name, array in states.items()}
    computed = ort.InferenceSession(translation).run(None, ones)
    assert [array.shape for array in computed] == [(2, 6), (2, 6)]
    assert [array.sum() for array in computed] == [8, 8]


def test_a_retrained_model_of_the_same_layers_is_compatible(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    for version, words in ((1, ()), (2, ("--replaces", old(tmp_path)))):
        layers = [keras.Input((None, 2)), keras.layers.GRU(4, name="gru"), keras.layers.Dense(1, name="y")]
        keras.Sequential(layers).save(tmp_path / "model.keras")
        done = run_stepwell("export", tmp_path / "model.keras", "-o", old(tmp_path, version), *words)

    assert "states:  compatible with version 1" in done.stdout
    assert "take is best is measured on own data: --verify" in done.stdout
    assert "recommended" not in done.stdout


def test_with_own_data_the_take_with_the_least_error_is_recommended(tmp_path: Path) -> None:
    export(tmp_path, 1, 4)
    np.savez(tmp_path / "data.npz", np.random.default_rng(0).normal(size=(6, 60, 2)).astype(np.float32))
    words = ["--replaces", old(tmp_path), "--verify", tmp_path / "data.npz"]
    report = json.loads(export(tmp_path, 2, 4, *words, "--json").stdout)["replaces"]
    found = report["first_forecasts"]

    assert (found["against"], found["moves"], found["forecasts"]) == ("own", 24, 12)
    assert found["errors"]["y"]["0"]["own"] == 0
    assert found["recommended"] == min(("keep", "reset"), key=found["overall"].get)
    lines = export(tmp_path, 3, 4, *words).stdout
    assert "first forecasts: differences from own states, without a truth, 12 timesteps after each of 24 moves" in lines
    assert f"recommended: take {found['recommended']}" in lines


def test_a_translation_that_cannot_be_made_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "widening_not.py").write_text(_WIDEN)
    monkeypatch.chdir(tmp_path)
    export(tmp_path, 1, 4)

    done = export(tmp_path, 2, 6, "--replaces", old(tmp_path), "--translate", "widening_not:nothing")

    assert done.exit_code == 1
    assert "returned int; expected an onnx.ModelProto" in str(done.exception)
    assert not old(tmp_path, 2).exists()
    assert export(tmp_path, 2, 6, "--translate", "widening_not:widen").exit_code == 2
