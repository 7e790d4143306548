"""Loads what `stepwell export` exports: a file, or what a function returns."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stepwell_export.arguments import as_path
from stepwell_export.runtime.errors import FileError, MissingExtraError, RefusedModelError, StepwellError
from stepwell_export.spec import BUFFERS, StepSpec

_EXPORTED = (
    "Give a .keras, .h5 or .onnx file, or package.module:callable that returns a keras.Model or, for PyTorch and JAX, "
    "a stepwell.StepSpec."
)
_NOT_YET = {
    ".pt": "a file of PyTorch weights, which does not describe the module",
    ".pth": "a file of PyTorch weights, which does not describe the module",
    ".ckpt": "a checkpoint of weights, as PyTorch Lightning writes it, which does not describe the module",
    ".pt2": "a PyTorch program, traced already",
    ".tflite": "a TensorFlow Lite file",
    ".pb": "a TensorFlow graph",
    ".safetensors": "a file of weights without a model",
}
_CHECKPOINT = (
    "Give package.module:callable, a function that returns stepwell.StepSpec(MyModule.load_from_checkpoint(PATH), "
    'inputs={"x": example}, time_axis=1).'
)
_EXTRAS = {
    "keras": "keras", "jax": "keras", "h5py": "keras", "onnx": "onnx", "torch": "torch", "onnxscript": "torch",
}  # fmt: skip
"""The extra that brings a package."""


def load_source(source: Any, *, pcm16: bool = False, examples: Mapping[str, Sequence[int]] | None = None) -> Any:
    """Return what a SOURCE names: a Keras model, a `StepSpec`, the path of an ONNX file, or a `Pipeline` of these.

    Args:
        source: A `.keras`, `.h5` or `.onnx` file, or `package.module:callable`. The current folder and PYTHONPATH are
            importable; the callable is called without arguments. A model or a `StepSpec` itself is returned as it is.
            Or `recipe:NAME=FILE`, of published graphs.
        pcm16: Whether the samples of a recipe are int16.
        examples: The shape of each input of a TorchScript file, a batch of one row in front, in `forward`'s order.

    Raises:
        FileError: There is no such file.
        ModelLoadError: Keras cannot load the file.
        RefusedModelError: It is something that this version does not export, or the callable fails.
        MissingExtraError: Keras, or a backend for it, is not installed.
    """
    if not isinstance(source, str):
        return _checked("The caller", source)
    if source.startswith("recipe:"):
        from stepwell_export.adoption.recipes import recipe_pipeline

        return recipe_pipeline(source, pcm16=pcm16)
    path = as_path("source", source)
    suffix = path.suffix
    if suffix in {".keras", ".h5", ".hdf5"}:
        _check_file(path)
        choose_keras_backend()
        from stepwell_export.keras import load_keras

        return load_keras(path)
    if suffix == ".onnx":
        _check_file(path)
        return path
    if suffix in _NOT_YET:
        _check_file(path)
        if suffix in {".pt", ".pth"} and (script := _torchscript(path)) is not None:
            return _with_examples(source, script, examples or {})
        fix = _CHECKPOINT if suffix == ".ckpt" else _EXPORTED
        raise RefusedModelError(f"{source} is {_NOT_YET[suffix]}; expected the model itself.", fix=fix)
    module, colon, name = source.partition(":")
    if colon and module and name and os.sep not in module:
        return _checked(source, _call(source, module, name))
    if source and path.is_dir():
        raise RefusedModelError(f"{source} is a folder; expected a file or a callable.", fix=_EXPORTED)
    raise RefusedModelError(f"SOURCE is {source!r}; expected a model file or package.module:callable.", fix=_EXPORTED)


def _torchscript(path: Path) -> Any:
    """Return the module of a TorchScript file; None: it is another file of PyTorch, or PyTorch is not installed."""
    if not zipfile.is_zipfile(path) or not find_spec("torch"):
        return None
    with zipfile.ZipFile(path) as archive:
        if not any("/code/" in name for name in archive.namelist()):
            return None
    import torch

    return torch.jit.load(path, map_location="cpu")


def _with_examples(source: str, module: Any, shapes: Mapping[str, Sequence[int]]) -> StepSpec:
    """Return a TorchScript module with its states in buffers, and an example of each input.

    Raises:
        RefusedModelError: There is no example.
    """
    import torch

    if not shapes:
        raise RefusedModelError(
            f"{source} is TorchScript, which does not say what shapes its inputs have.",
            fix="Give the shape of each, a batch of one row in front: `--example x=1x47`.",
        )
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return StepSpec(module, inputs=inputs, states=BUFFERS)


def choose_keras_backend() -> None:
    """Let Keras use a backend that is installed, before it is imported for the first time.

    Keras uses TensorFlow unless configured otherwise, and writes that into its settings file even where there is none.
    KERAS_BACKEND, when set, is left alone, and so is a settings file that names an installed backend.

    Raises:
        MissingExtraError: Keras, or any backend for it, is not installed.
    """
    if "keras" in sys.modules or os.environ.get("KERAS_BACKEND"):
        return
    installed = [name for name in ("jax", "torch", "tensorflow") if find_spec(name)]
    if not installed or not find_spec("keras"):
        raise MissingExtraError(
            f"Exporting a Keras model needs {'a backend for Keras' if find_spec('keras') else 'Keras'}, "
            "which is not installed.",
            fix="Install it: pip install 'stepwell[keras]'; from a clone: STEPWELL_EXTRAS=keras ./stepwell export ...",
        )
    if _configured_backend() not in installed:
        os.environ["KERAS_BACKEND"] = installed[0]


def _configured_backend() -> str | None:
    home = os.environ.get("KERAS_HOME")
    settings = (Path(home) if home else Path.home() / ".keras") / "keras.json"
    try:
        backend = json.loads(settings.read_text())["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return backend if isinstance(backend, str) else None


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileError(f"{path} is not there; expected a model file.", fix="Check the path.")


def named_object(source: str, module_name: str, name: str) -> Any:
    """Import a module of the caller, and return what it has under a name.

    Args:
        source: `package.module:name` as it was given, for errors.
        module_name: The module.
        name: The name, perhaps with dots.

    Raises:
        RefusedModelError: There is no such module or name, or the module fails.
        MissingExtraError: It needs a package of an extra that is not installed.
    """
    here = str(Path.cwd())
    if sys.path[:1] not in ([""], [here]):
        sys.path.insert(0, here)  # a console script has its own folder there, not the caller's
    _forget_namesake(Path.cwd(), module_name.partition(".")[0])
    with suppress(MissingExtraError):  # whether it needs Keras is the module's affair
        choose_keras_backend()
    try:
        named: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (module_name == exc.name or module_name.startswith(f"{exc.name}.")):
            raise RefusedModelError(
                f"There is no module {exc.name!r} for {source!r}; looked in {here} and PYTHONPATH.",
                fix="Run the command in the folder that has it, or set PYTHONPATH.",
            ) from exc
        raise _failed(source, exc) from exc
    except (Exception, SystemExit) as exc:
        raise _failed(source, exc) from exc
    for part in name.split("."):
        if not hasattr(named, part):
            like = get_close_matches(part, dir(named), 1)
            raise RefusedModelError(
                f"{module_name} has no {name!r}, which {source!r} names.",
                fix=f"Did you mean {like[0]!r}?" if like else "Name a function that it has.",
            )
        named = getattr(named, part)
    return named


def _call(source: str, module_name: str, name: str) -> Any:
    factory = named_object(source, module_name, name)
    if (
        isinstance(factory, StepSpec)
        or _is_pipeline(factory)
        or _is_a("keras", "Model", factory)
        or not callable(factory)
    ):
        return factory
    if _is_a("torch", "nn.Module", factory):
        return factory  # calling it would run it
    make: Callable[[], Any] = factory
    try:
        return make()
    except StepwellError:
        raise
    except (Exception, SystemExit) as exc:  # of a script that ends itself: with 0, nothing would have been written
        raise _failed(source, exc) from exc


def _forget_namesake(here: Path, name: str) -> None:
    """Let a module in the caller's folder be imported where another of its name is: Python has a `wave` of its own."""
    own = [path for path in (here / f"{name}.py", here / name / "__init__.py") if path.is_file()]
    known = getattr(sys.modules.get(name), "__file__", None)
    if own and known is not None and Path(known).resolve() not in [path.resolve() for path in own]:
        del sys.modules[name]


def _is_pipeline(given: Any) -> bool:
    return _is_a("stepwell_export.stages.pipeline", "Pipeline", given)


def _loaded_parts(pipeline: Any) -> Any:
    """Return a pipeline with its models loaded."""
    from stepwell_export.stages.pipeline import Part, Pipeline, RowModel

    def loaded(part: Any) -> Any:
        if not isinstance(part, Part) or isinstance(part.model, RowModel):
            return part
        model = load_source(str(part.model) if isinstance(part.model, Path) else part.model)
        return replace(part, model=model)

    return Pipeline([loaded(part) for part in pipeline.parts], outputs=pipeline.outputs, shown=pipeline.shown)


def _failed(source: str, exc: BaseException) -> StepwellError:
    last = traceback.extract_tb(exc.__traceback__)[-1]
    package = (exc.name or "").partition(".")[0] if isinstance(exc, ModuleNotFoundError) else ""
    if extra := _EXTRAS.get(package):
        return MissingExtraError(
            f"{source} needs {package}, which is not installed ({last.filename}, line {last.lineno}).",
            fix=f"Install it: pip install 'stepwell[{extra}]'; from a clone: STEPWELL_EXTRAS={extra} ./stepwell "
            "export ...",
        )
    return RefusedModelError(
        f"{source} failed: {type(exc).__name__}: {exc} ({last.filename}, line {last.lineno}).",
        fix="Mend it there; it must return a model when it is called without arguments.",
    )


def _is_a(package: str, path: str, given: Any) -> bool:
    """Whether something is of a framework's class; a framework that nothing has imported has made nothing."""
    kind = sys.modules.get(package)
    for part in path.split("."):
        kind = getattr(kind, part, None)
    return isinstance(kind, type) and isinstance(given, kind)


def is_jax_function(spec: StepSpec) -> bool:
    """Whether a `StepSpec` is of a function of JAX arrays: of a callable, and nothing about it is PyTorch's."""
    is_torch = _is_a("torch", "nn.Module", spec.module) or any(
        _is_a("torch", "Tensor", example) for example in spec.inputs.values()
    )
    return callable(spec.module) and not is_torch and not spec.states


def _checked(source: str, given: Any) -> Any:
    if isinstance(given, StepSpec) or _is_a("keras", "Model", given):
        return given
    if _is_pipeline(given):
        return _loaded_parts(given)
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    if _is_a("torch", "nn.Module", given):
        raise RefusedModelError(
            f"{source} gives {kind}, a PyTorch module alone; expected it with examples of what it takes.",
            fix='Return stepwell.StepSpec(module, inputs={"x": torch.zeros(2, 10, 16)}, time_axis=1), or with '
            'states={...} where `forward` takes and returns them, or states="buffers" where it keeps them.',
        )
    raise RefusedModelError(
        f"{source} gives {kind}; expected a keras.Model, a stepwell.StepSpec or a stepwell.Pipeline.",
        fix=_EXPORTED,
    )
