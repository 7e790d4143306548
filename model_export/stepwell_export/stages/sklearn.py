"""`from_sklearn`: a fitted scikit-learn transformer, estimator or pipeline as a part of a `Pipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stepwell_export.runtime.errors import MissingExtraError, RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.stages.pipeline import RowModel


def from_sklearn(fitted: Any) -> Any:
    """Return a fitted scikit-learn object as a part of a `Pipeline`.

    Each timestep is one row of its features. A transformer returns `transform`, a regressor `predict`, a classifier
    `predict_proba`. It is converted by skl2onnx, and verified against scikit-learn itself.

    Args:
        fitted: A transformer, estimator or `sklearn.pipeline.Pipeline`, fitted.

    Raises:
        MissingExtraError: scikit-learn or skl2onnx is not installed.
        RefusedModelError: It is not fitted, or skl2onnx cannot convert it.
    """
    try:
        import skl2onnx
        import sklearn
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError as exc:
        raise MissingExtraError(
            f"Converting scikit-learn objects needs {exc.name}, which is not installed.",
            fix="Install it: pip install 'stepwell[sklearn]'.",
        ) from exc
    features = getattr(fitted, "n_features_in_", None)
    if features is None:
        raise RefusedModelError(
            f"{type(fitted).__name__} is no fitted scikit-learn object.", fix="Call its `fit` before `from_sklearn`."
        )
    method = next((name for name in ("transform", "predict_proba", "predict") if hasattr(fitted, name)), "")
    options: dict[Any, Any] = {id(fitted): {"zipmap": False}} if method == "predict_proba" else {}
    try:
        proto = skl2onnx.to_onnx(
            fitted, initial_types=[("x", FloatTensorType([None, int(features)]))], options=options or None
        )
    except Exception as exc:
        raise RefusedModelError(
            f"skl2onnx {skl2onnx.__version__} cannot convert {type(fitted).__name__}: {str(exc).strip()[:300]}.",
            fix="Use the stages of stepwell.stages in its place.",
        ) from exc
    output = proto.graph.output[-1]
    del proto.graph.output[:]
    proto.graph.output.append(output)

    def reference(rows: Mapping[str, Array]) -> dict[str, Array]:
        found = np.asarray(getattr(fitted, method)(rows["x"]))
        return {output.name: found.reshape(len(found), -1).astype(np.float32)}

    return RowModel(proto, against=f"scikit-learn {sklearn.__version__}", reference=reference)
