"""`Pipeline`: stages and models one behind the other, exported as one step graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell_export.runtime.errors import ManifestError
from stepwell_export.runtime.manifest import Array
from stepwell_export.stages.stage import Stage

if TYPE_CHECKING:
    import onnx

Rows = Mapping[str, Array]
"""One array by name, shape `(n, *row)`."""


@dataclass(frozen=True, slots=True)
class RowModel:
    """A model that uses one row alone, such as `from_sklearn` returns: every timestep is a row.

    Attributes:
        proto: Its graph; axis 0 of every input and output has the rows.
        against: The original and its version; empty: the graph itself on onnxruntime.
        reference: The original; None: the file, or the graph itself where there is none.
        file: The file that the graph was read from; None: it was made in memory.
    """

    proto: onnx.ModelProto
    against: str = ""
    reference: Callable[[Rows], Rows] | None = None
    file: Path | None = None


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
        others = [i for i in models if not isinstance(self.parts[i], RowModel | Path)]
        files = [i for i in models if isinstance(self.parts[i], Path)]
        return (others or files or models)[0] if self._anchor is None else self._anchor
