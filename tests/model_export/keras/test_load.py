"""Models from files: `.keras`, `.h5` of Keras 2 and 3, and what is no whole model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from stepwell_export.keras import load_keras
from stepwell_export.runtime.errors import MissingExtraError, ModelLoadError
from tests.model_export.keras import zoo
from tests.model_export.keras.proven import export_model


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("stacked", "m.keras"),
        ("operations", "m.keras"),
        ("tokens_masked", "m.h5"),
    ],
)
def test_a_saved_model_gives_the_graph_of_the_model_in_memory(tmp_path: Path, name: str, file: str) -> None:
    """Loading also rebuilds masks, and in `.keras` files operations (Keras itself cannot read those from `.h5`)."""
    from stepwell_export.keras.sequence import export_keras

    model = zoo.build(name)
    model.save(tmp_path / file)

    loaded = load_keras(tmp_path / file)

    want, got = (export_keras(m, name="m").proto.graph for m in (model, loaded))
    assert [n.op_type for n in got.node] == [n.op_type for n in want.node]
    assert sorted(t.raw_data for t in got.initializer) == sorted(t.raw_data for t in want.initializer)


def test_registered_layers_of_ones_own_are_loaded(tmp_path: Path) -> None:
    zoo.build("custom_layer").save(tmp_path / "m.keras")

    assert export_model(load_keras(tmp_path / "m.keras"), name="m")[1].parity.max_abs <= 1e-5


def test_an_h5_file_of_keras_2_is_loaded_though_it_says_time_major(tmp_path: Path) -> None:
    model = zoo.build("stacked")
    model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            if layer["class_name"] in {"LSTM", "GRU"}:
                layer["config"]["time_major"] = False
        file.attrs["model_config"] = json.dumps(config)
    before = (tmp_path / "m.h5").read_bytes()

    loaded = load_keras(tmp_path / "m.h5")

    x = np.ones((1, 3, 4), np.float32)
    np.testing.assert_array_equal(loaded(x), model(x))
    assert (tmp_path / "m.h5").read_bytes() == before, "the user's file is not touched"


@pytest.mark.parametrize("name", ["m.weights.h5", "weights.h5"])
def test_weights_without_a_model_are_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    model = zoo.build("simple_relu")
    if name == "m.weights.h5":
        model.save_weights(tmp_path / name)
    else:  # what Keras 2 wrote: the layers' groups at the top of the file
        model.save(tmp_path / "whole.h5")
        with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(tmp_path / name, "w") as file:
            for group in whole["model_weights"]:
                whole["model_weights"].copy(group, file)
            file.attrs["layer_names"] = whole["model_weights"].attrs["layer_names"]

    with pytest.raises(ModelLoadError, match="has weights only; expected a whole model") as caught:
        load_keras(tmp_path / name)

    assert "package.module:function" in caught.value.fix


def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "m.keras").write_bytes(b"not a model")

    with pytest.raises(ModelLoadError, match=r"cannot load .*m\.keras: its bytes are neither"):
        load_keras(tmp_path / "m.keras")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"There is no file .*gone\.keras"):
        load_keras(tmp_path / "gone.keras")


def test_unregistered_layers_of_ones_own_are_refused_with_what_to_do(tmp_path: Path) -> None:
    class Unknown(keras.layers.Dense):  # type: ignore[misc]  # Keras has no types
        pass

    keras.Sequential([keras.Input((None, 2)), Unknown(2)]).save(tmp_path / "m.keras")

    with pytest.raises(ModelLoadError, match=r"Could not locate class 'Unknown'") as caught:
        load_keras(tmp_path / "m.keras")

    assert "layers of your own" in caught.value.fix


@pytest.mark.parametrize("file", ["m.keras", "m.h5"])
def test_random_values_that_the_weights_of_the_file_replace_are_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("drawn")

    model = zoo.build("stacked")
    model.save(tmp_path / file)
    monkeypatch.setattr(keras.initializers.Orthogonal, "__call__", fail)
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", fail)

    loaded = load_keras(tmp_path / file)

    for want, got in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(AssertionError, match="drawn"):  # afterwards they are again what they were
        keras.initializers.GlorotUniform()((2, 2))


@keras.saving.register_keras_serializable("tests")
class SeededNoise(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Adds values that are the same each time, and are not saved."""

    def build(self, _: object) -> None:
        self.noise = keras.ops.convert_to_numpy(keras.initializers.RandomNormal(seed=7)((3,)))

    def call(self, x: object) -> object:
        return x + self.noise


def test_values_drawn_with_a_seed_are_drawn_since_a_layer_need_not_save_them(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((None, 3)), SeededNoise(), keras.layers.GRU(2)])
    model.save(tmp_path / "m.keras")

    loaded = load_keras(tmp_path / "m.keras")

    np.testing.assert_array_equal(loaded.layers[0].noise, model.layers[0].noise)
    assert loaded.layers[0].noise.any()


@keras.saving.register_keras_serializable("tests")
class Narrow(keras.initializers.RandomNormal):  # type: ignore[misc]  # Keras has no types
    """An initializer of one's own; its configuration has no seed."""

    def __init__(self) -> None:
        super().__init__(stddev=0.01, seed=7)

    def get_config(self) -> dict[str, object]:
        return {}


def test_an_initializer_of_ones_own_may_have_a_configuration_without_a_seed(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.GRU(2, kernel_initializer=Narrow())])
    model.save(tmp_path / "m.keras")

    loaded = load_keras(tmp_path / "m.keras")

    for want, got in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)  # what Python does for a module that cannot be imported

    with pytest.raises(MissingExtraError, match="needs onnx") as caught:
        export_model(object(), name="m")

    assert "pip install 'stepwell[keras]'" in caught.value.fix


def test_importing_the_front_end_imports_no_framework() -> None:
    code = "import sys, stepwell_export.keras; print(sorted({'keras', 'onnx', 'jax', 'h5py'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
