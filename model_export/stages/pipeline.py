"""`Pipeline`: stages and models one behind the other, exported as one step graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_export.errors import ManifestError
from model_export.stages.stage import Stage


class RowPart:
    """A part of a pipeline that uses one row alone, such as `from_sklearn` returns."""

    __slots__ = ()


class Pipeline:
    """Stages and models one behind the other, in the order in which a timestep passes them.

    `Pipeline([Impute("last"), Standardize(mean, std), model, Standardize(mean_y, std_y).inverse()])` is exported as one
    graph with one manifest, and verified as a whole: against the stages in NumPy and the model in its own framework.

    Attributes:
        parts: `Stage`s, and at least one model: a Keras model, a `StepSpec`, the path of a model file, or what
            `from_sklearn` returns.
    """

    def __init__(self, parts: Sequence[Any], *, anchor: int | None = None) -> None:
        """Check the parts.

        Raises:
            ManifestError: There is no model among them.
        """
        self.parts = list(parts)
        if all(isinstance(part, Stage) for part in self.parts):
            raise ManifestError(
                "Pipeline has no model; expected stages and at least one model.",
                fix="Give `Pipeline([stage, model, stage])`; parts are a model, a StepSpec or a model file.",
            )
        self._anchor = anchor

    @property
    def anchor(self) -> int:
        """The place of the model that the other parts are fitted to: the first that is no ONNX file, else the first."""
        models = [i for i, part in enumerate(self.parts) if not isinstance(part, Stage)]
        others = [i for i in models if not isinstance(self.parts[i], RowPart | Path)]
        files = [i for i in models if isinstance(self.parts[i], Path)]
        return (others or files or models)[0] if self._anchor is None else self._anchor
