"""Quick weights for every Keras model of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import keras
import numpy as np
import pytest

from tests.model_export.keras.zoo_parts import tensor


@pytest.fixture(scope="module", autouse=True)  # for these tests alone: others run in the same process
def quick_weights() -> Iterator[None]:
    """Start random weights from simple numbers: Keras' own initialisers compile a second for each model.

    The zoo sets its weights itself in any case.
    """

    def numbers(_: Any, shape: Any, dtype: Any = None) -> Any:
        return tensor(np.random.default_rng(0).normal(0, 0.3, shape), dtype or "float32")

    def zeros(_: Any, shape: Any, dtype: Any = None) -> Any:
        return tensor(np.zeros(shape), dtype or "float32")

    glorot = keras.initializers.GlorotUniform.__mro__[1]  # the base that samples
    with ExitStack() as stack:
        for cls in (keras.initializers.Orthogonal, glorot, keras.initializers.RandomUniform):
            stack.enter_context(patch.object(cls, "__call__", numbers))
        stack.enter_context(patch.object(keras.initializers.Zeros, "__call__", zeros))
        yield
