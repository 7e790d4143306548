"""Reads an ONNX file without running it; the onnx package is imported when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_export.errors import FileError, MissingExtraError, ModelLoadError

if TYPE_CHECKING:
    import onnx


def read_model(path: Path, *, weights: bool = False) -> onnx.ModelProto:
    """Return a file's model, its local functions put in place of their calls.

    Args:
        path: The ONNX file.
        weights: Whether to read weights that lie beside the file, too.

    Raises:
        MissingExtraError: The onnx package is not installed.
        FileError: There is no such file.
        ModelLoadError: The file is no ONNX model.
    """
    onnx = require_onnx()
    if not path.is_file():
        raise FileError(f"{path} is not there; expected an ONNX file.", fix="Check the path.")
    try:
        model = onnx.load(str(path), load_external_data=weights)
    except Exception as exc:
        raise ModelLoadError(f"{path} is not an ONNX model: {exc}.", fix="Give the path of an .onnx file.") from exc
    return without_functions(model)


def require_onnx() -> Any:
    """Return the onnx package.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import onnx
    except ImportError as exc:
        raise MissingExtraError(
            f"Reading the nodes of a graph needs the onnx package, which cannot be imported: {exc}.",
            fix="Install it: pip install 'stepwell[onnx]'; from a clone: STEPWELL_EXTRAS=onnx ./stepwell ...",
        ) from exc
    return onnx


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its local functions in the place of their calls."""
    import onnx.inliner

    return onnx.inliner.inline_local_functions(model) if model.functions else model
