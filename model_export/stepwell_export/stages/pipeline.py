"""`Pipeline`: stages and models as a graph of named values, exported as one step graph."""

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

Names = str | Sequence[str] | Mapping[str, str] | None
"""One name, one for each input or output in order, or by the model's own name; None: the defaults."""


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


@dataclass(frozen=True, slots=True)
class Part:
    """A model in a `Pipeline`, with the values that it reads and writes.

    Attributes:
        model: A Keras model, a `StepSpec`, the path of a model file, or what `from_sklearn` returns.
        of: The values that its inputs read: one name, a tuple in the order of the inputs, or `{input: name}`. An input
            without one reads the value of its own name, or the only one that no part has read yet.
        to: The names of its outputs, in the same forms; by default their own.
    """

    model: Any
    of: Names = None
    to: Names = None


class Pipeline:
    """Stages and models as a graph of named values.

    `Pipeline([Impute("last"), Standardize(mean, std), model, Standardize(mean_y, std_y).inverse()])` is exported as one
    graph with one manifest, and verified as a whole: against the stages in NumPy and the model in its own framework.
    Each part reads values by `of=` and writes values by `to=`; without these it reads the only value that no part has
    read yet. What no part has read at the end is the answer.

    Attributes:
        parts: `Stage`s and `Part`s, in order; at least one is a model.
        outputs: The names of the answers, in order; None: what no part has read, in the order in which it was written.
        shown: Other names of answers in the manifest, such as that of an input, which no value can have at the end.
    """

    def __init__(
        self,
        parts: Sequence[Any],
        *,
        outputs: Sequence[str] | None = None,
        anchor: int | None = None,
        shown: Mapping[str, str] | None = None,
    ) -> None:
        """Check the parts.

        Args:
            parts: Stages, and at least one model: a `Part`, or what a `Part` has for its model.
            outputs: The names of the answers.
            anchor: The place of the model that flags such as `--time-axis` are for.
            shown: Names in the manifest by answer.

        Raises:
            ManifestError: There is no model among them, or no output is named.
        """
        if not isinstance(parts, Sequence) or isinstance(parts, str | bytes):
            raise ManifestError(
                f"Pipeline's parts are of type {type(parts).__name__}; expected a list of stages and models.",
                fix="Give `Pipeline([stage, model, stage])`.",
            )
        self.parts = [part if isinstance(part, Stage | Part) else Part(part) for part in parts]
        if all(isinstance(part, Stage) for part in self.parts):
            raise ManifestError(
                "Pipeline has no model; expected stages and at least one model.",
                fix="Give `Pipeline([stage, model, stage])`; parts are a model, a StepSpec or a model file.",
            )
        if outputs is not None and (isinstance(outputs, str) or not outputs or len({*outputs}) != len(outputs)):
            raise ManifestError(
                f"`outputs` is {outputs!r}; expected a list of names that differ.", fix='Give `outputs=["y"]`.'
            )
        self.outputs = None if outputs is None else list(outputs)
        self._anchor = anchor
        self.shown = dict(shown or {})

    @property
    def anchor(self) -> int:
        """The place of the model that flags are for: the first that is no ONNX file, else the first."""
        models = {i: part.model for i, part in enumerate(self.parts) if isinstance(part, Part)}
        others = [i for i, model in models.items() if not isinstance(model, RowModel | Path)]
        files = [i for i, model in models.items() if isinstance(model, Path)]
        return (others or files or [*models])[0] if self._anchor is None else self._anchor
