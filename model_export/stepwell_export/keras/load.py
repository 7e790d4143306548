"""Reads Keras models from files, `.keras` and legacy `.h5`, without drawing the random values that these replace."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import keras
import numpy as np

from stepwell_export.keras.own_layers import load_step_rules
from stepwell_export.patched import patched
from stepwell_export.runtime.errors import ModelLoadError

_DRAWN: Final = (
    keras.initializers.Orthogonal,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.VarianceScaling,
)
_LOADING: Final = threading.Lock()


@contextmanager
def zeros_for_random_values() -> Iterator[None]:
    """Let initializers without a seed give zeros in this thread.

    Each shape of an initializer is compiled by JAX, and an orthogonal matrix of a large layer takes seconds. With a
    seed the values can be the same each time, so a layer may use them without saving them: these are drawn.
    """
    thread = threading.get_ident()
    with _LOADING, patched(*((kind, "__call__", _zeros(kind.__call__, thread)) for kind in _DRAWN)):
        yield


def _zeros(draw: Callable[..., Any], thread: int) -> Callable[..., Any]:
    """Return a method that gives zeros to calls of a thread, and is `draw` to others."""

    def call(initializer: Any, shape: Any, dtype: Any = None) -> Any:
        if threading.get_ident() != thread or initializer.get_config().get("seed", "unknown") is not None:
            return draw(initializer, shape, dtype)
        return keras.ops.convert_to_tensor(np.zeros(shape, np.float32), dtype)  # compiles nothing

    return call


_BUILD_IT = (
    "Write a function that builds the model and calls `load_weights`, and export `package.module:function` instead."
)


def load_keras(path: Path) -> Any:
    """Load a whole model, architecture and weights.

    Args:
        path: A `.keras` file, or an `.h5` file of Keras 2 or 3.

    Raises:
        ModelLoadError: It is no such file, has weights only, or needs classes that are not registered.
        AddonError: An installed package registers layers, and cannot be imported.
    """
    load_step_rules()
    if not path.is_file():
        raise ModelLoadError(f"There is no file {path}.", fix="Check the path.")
    if not (zipfile.is_zipfile(path) or h5py.is_hdf5(path)):  # Keras reports it as not found
        raise ModelLoadError(
            f"Keras cannot load {path}: its bytes are neither those of a `.keras` nor of an `.h5` file.",
            fix="Save the model again with `model.save`; the file may have been cut off.",
        )
    try:
        with zeros_for_random_values():
            if h5py.is_hdf5(path):
                return _load_h5(path)
            return keras.models.load_model(path, compile=False)
    except ModelLoadError:
        raise
    except Exception as exc:
        # Keras puts the cause behind the whole configuration.
        cause = str(exc).rsplit("Exception encountered: ", 1)[-1].strip()
        reason = (cause.splitlines() or [type(exc).__name__])[0].rstrip(".")
        raise ModelLoadError(
            f"Keras {keras.__version__} cannot load {path}: {reason}.",
            fix="If it has layers of your own, " + _BUILD_IT[0].lower() + _BUILD_IT[1:],
        ) from exc


def _load_h5(path: Path) -> Any:
    with h5py.File(path) as file:
        text = file.attrs.get("model_config")
    if text is None:
        raise ModelLoadError(f"{path} has weights only; expected a whole model.", fix=_BUILD_IT)
    config = json.loads(text)
    changed = _drop_time_major(config)
    if not changed:
        return keras.models.load_model(path, compile=False)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.h5"
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(config)
        return keras.models.load_model(copy, compile=False)


def _drop_time_major(part: Any) -> bool:
    """Take out `time_major: false`, which Keras 2 wrote for every recurrent layer and Keras 3 does not read."""
    children = part if isinstance(part, list) else list(part.values()) if isinstance(part, dict) else []
    found = isinstance(part, dict) and part.get("time_major") is False
    if found:
        del part["time_major"]
    for child in children:
        found |= _drop_time_major(child)
    return found
