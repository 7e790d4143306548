"""A graph without description: what it declares, and what it gives when it is tried on zeros."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stepwell_export.adoption.axes import Declared, Row
from stepwell_export.runtime.describe import check_onnx_file
from stepwell_export.runtime.errors import ModelLoadError, RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import DTYPES, METADATA_KEY, Array, ConstantSpec
from stepwell_export.runtime.session import open_session, trial_run
from stepwell_export.runtime.step_model import ORT_TYPES


class OrtGraph:
    """An ONNX file on onnxruntime.

    Attributes:
        path: The file.
        inputs: As declared, in graph order.
        outputs: As declared, in graph order.
        has_manifest: Whether the file has a manifest inside.
    """

    def __init__(self, path: Path) -> None:
        """Load the file.

        Raises:
            FileError: There is no such file, or it is a folder or a trained model.
            ModelLoadError: onnxruntime cannot load it.
            RefusedModelError: An input is no tensor of numbers.
        """
        check_onnx_file(path)
        self._session = open_session(path, where=str(path))
        self.path = path
        self.inputs = [_declared(value) for value in self._session.get_inputs()]
        self.outputs = [_declared(value) for value in self._session.get_outputs()]
        self.has_manifest = METADATA_KEY in self._session.get_modelmeta().custom_metadata_map
        for tensor in self.inputs:
            if tensor.dtype not in DTYPES:
                raise RefusedModelError(
                    f"Input {tensor.name!r} of {path} is {tensor.dtype}; expected a tensor of {', '.join(DTYPES)}.",
                    fix="Move what needs it out of the graph.",
                )

    def constant(self, name: str, value: Any) -> Array:
        """Return a constant as the graph declares it.

        Args:
            name: The graph input.
            value: A number, a boolean, or nested lists of them; a number is also taken for shape [1].

        Raises:
            UnclearModelError: The value does not fit the input.
        """
        declared = next(tensor for tensor in self.inputs if tensor.name == name)
        try:
            array = ConstantSpec(dtype=declared.dtype, value=value).array()
        except ValueError as exc:
            raise UnclearModelError(
                f"Constant {name!r} is {value!r}; the graph takes {declared.dtype}.",
                fix=f"Give a value that fits: `--constant {name}=NUMBER`.",
            ) from exc
        if array.ndim == 0 and declared.dims:
            array = array.reshape([1] * len(declared.dims))
        fits = len(declared.dims) == array.ndim and all(
            not isinstance(dim, int) or dim == length for dim, length in zip(declared.dims, array.shape, strict=True)
        )
        if not fits:
            raise UnclearModelError(
                f"Constant {name!r} has shape {list(array.shape)}; the graph declares {list(declared.dims)}.",
                fix=f"Give nested lists of that shape: `--constant {name}=[..]`.",
            )
        return array

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once and return every output by name.

        Raises:
            ModelLoadError: onnxruntime failed.
            RefusedModelError: It did not end in time.
        """
        with trial_run(feeds) as options:
            try:
                values = self._session.run(None, dict(feeds), options)
            except Exception as exc:
                given = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
                raise ModelLoadError(
                    f"onnxruntime failed in {self.path} on inputs of these shapes ({given}): {str(exc).strip()}.",
                    fix="Check `--constant`, `--window` and `--shape`.",
                ) from exc
        return {output.name: value for output, value in zip(self.outputs, values, strict=True)}

    def shapes(self, rows: Mapping[str, Row], constants: Mapping[str, Array], count: int) -> dict[str, tuple[int, ...]]:
        """Run `count` rows of zeros and return the shape of every output.

        Raises:
            ModelLoadError: onnxruntime failed.
        """
        feeds = {t.name: np.zeros(rows[t.name].shape(count), t.dtype) for t in self.inputs if t.name in rows}
        return {name: np.shape(value) for name, value in self.run({**feeds, **constants}).items()}


def _declared(value: Any) -> Declared:
    return Declared(value.name, ORT_TYPES.get(value.type, value.type), tuple(value.shape or ()))
