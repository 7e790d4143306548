"""The errors of exporting, adopting and loading a step graph."""

from __future__ import annotations

import copyreg
import traceback
from pathlib import Path
from typing import Any


class StepwellError(Exception):
    """An error with what was found and what to do about it; the base class of all errors of users' mistakes.

    Attributes:
        code: Stable machine-readable name, in snake case.
        problem: What was found and what was expected, with both values.
        fix: What can be done about it now.
    """

    code = "internal"

    def __init__(self, problem: str, *, fix: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem} {self.fix}" if self.fix else self.problem

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes: `Exception` would call the class with the problem alone, and most classes take more.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # not in the stubs


class InternalError(StepwellError):
    """A fault of this package itself, met on a model that may be in order.

    Args:
        doing: What was being done.
        cause: The error that ended it.
    """

    def __init__(self, doing: str, cause: BaseException) -> None:
        frames = traceback.extract_tb(cause.__traceback__)
        place = f", {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
        super().__init__(
            f"A fault of Stepwell, not of the model: {doing} failed ({type(cause).__name__}: {cause}{place}).",
            fix="Report it to the maintainers with this message and, if you may, the model.",
        )


class ManifestError(StepwellError):
    """The manifest is missing, is not valid JSON, or contradicts itself."""

    code = "bad_manifest"


class ModelLoadError(StepwellError):
    """A graph cannot be loaded, or does not have what its manifest declares."""

    code = "model_unloadable"


class UnclearModelError(StepwellError):
    """A graph that leaves something open; a flag of `stepwell adopt` sets it."""

    code = "model_unclear"


class NothingCarriedError(UnclearModelError):
    """A graph over sequences whose answers do not depend on earlier timesteps, as far as its axes are known."""


class RefusedModelError(StepwellError):
    """A model that cannot be stepped; names the layer or node, and the reason.

    Attributes:
        layer: What the problem calls the layer or node; empty: it names none.
    """

    code = "model_refused"

    def __init__(self, problem: str, *, fix: str = "", layer: str = "") -> None:
        super().__init__(problem, fix=fix)
        self.layer = layer


class ParityError(StepwellError):
    """Step by step and whole sequence differ by more than the tolerance."""

    code = "parity_failed"


class WeakProofError(ParityError):
    """Step graph and original agree, and a wrong graph might have agreed as well.

    Attributes:
        exported: The `stepwell_export.exporter.Exported` that would have been written.
    """

    code = "proof_weak"

    def __init__(self, problem: str, *, fix: str, exported: Any) -> None:
        super().__init__(problem, fix=fix)
        self.exported = exported


class MissingExtraError(StepwellError):
    """A package that this job needs is not installed."""

    code = "missing_extra"


class FileError(StepwellError):
    """A file is missing, or cannot be read or written."""

    code = "file_unusable"


class TensorError(StepwellError):
    """An array's name, shape or dtype is not what the manifest declares."""

    code = "bad_input"


class ModelTimeoutError(StepwellError):
    """One model run was ended because it took longer than `run_timeout_s`."""

    code = "model_timeout"
