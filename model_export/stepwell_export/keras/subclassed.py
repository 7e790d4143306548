"""A subclassed model as one that can be walked: its `call` becomes a layer of a functional model."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import keras

from stepwell_export.runtime.errors import RefusedModelError


def walkable(model: Any) -> Any:
    """Return the model itself, or a functional model around one whose `call` is Python code.

    Args:
        model: Any Keras model.

    Raises:
        RefusedModelError: It is not built, or its inputs are unknown, or its code fails on symbolic tensors.
    """
    if functional(model) is not None:
        return model
    shapes = None if isinstance(model, keras.Sequential) else getattr(model, "_build_shapes_dict", None)
    if not isinstance(model, keras.Model) or not shapes:
        raise RefusedModelError(
            f"Model {getattr(model, 'name', model)!r} ({type(model).__name__}) has no graph of layers to walk, and "
            "its inputs are unknown: it is not built yet.",
            fix="Give it a `keras.Input(...)` first (Sequential), build it with the functional API, or call it once on "
            "data before it is exported (a subclass of keras.Model).",
        )
    failure: Exception | None = None
    for ids, free in product((True, False), (True, False)):  # code may need to know the number of timesteps
        try:
            return _wrapped(model, shapes, ids=ids, free=free)
        except Exception as exc:  # noqa: BLE001  # whatever people's code raises
            failure = failure or exc
    raise RefusedModelError(
        f"Model {model.name!r} ({type(model).__name__}) cannot be called on symbolic tensors of shapes {shapes}: "
        f"{describe_cause(failure)}.",
        fix="Give its `call` one argument (a tensor, a list or a dict of them) and write it with layers and "
        "`keras.ops`, or build it with the functional API.",
    ) from failure


def _wrapped(model: Any, shapes: dict[str, Any], *, ids: bool, free: bool) -> Any:
    """Return a functional model of one call.

    Args:
        model: The model.
        shapes: What it was built with.
        ids: An input of two axes is one number for each timestep, where it is as long as the others have timesteps.
        free: Leave the time axis open; else it is as long as it was when the model was built.
    """
    lengths: set[int | None] = set()
    _tensors("", shapes, lambda _, shape: lengths.update(shape[1:2] if len(shape) > 2 else ()))

    def tensor(name: str, shape: tuple[int | None, ...]) -> Any:
        time = len(shape) > 2 or (len(shape) == 2 and (not lengths or (ids and shape[1] in lengths)))
        return keras.Input(batch_shape=(None, None, *shape[2:]) if time and free else (None, *shape[1:]), name=name)

    given = {
        name.removesuffix("_shape"): _tensors(name.removesuffix("_shape"), s, tensor) for name, s in shapes.items()
    }
    if len(given) > 1:
        return keras.Model(given, model(**given), name=model.name)
    (argument,) = given.values()
    return keras.Model(argument, model(argument), name=model.name)


def _is_shape(struct: Any) -> bool:
    return isinstance(struct, list | tuple) and all(dim is None or isinstance(dim, int) for dim in struct)


def _tensors(name: str, struct: Any, make: Callable[[str, tuple[int | None, ...]], Any]) -> Any:
    """Return the same structure with a tensor in place of every shape, made of its name and the shape."""
    if _is_shape(struct):
        return make(name, tuple(struct))
    if isinstance(struct, dict):
        return {key: _tensors(str(key), part, make) for key, part in struct.items()}
    return [_tensors(f"{name}_{number}", part, make) for number, part in enumerate(struct)]


def functional(model: Any) -> Any:
    """Return the graph of layers of a model: itself, a Sequential's functional graph, or None."""
    if isinstance(model, keras.Sequential):
        model = model._functional
    return model if isinstance(model, keras.Model) and hasattr(model, "_run_through_graph") else None


def describe_cause(failure: BaseException | None) -> str:
    """Return what failed, in one line, without what Keras writes around it."""
    plain = re.sub(r"\x1b\[\d*m", "", str(failure))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith("Exception encountered when calling")]
    return f"{type(failure).__name__}: {(own or [''])[0].rstrip('.')}"
