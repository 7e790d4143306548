"""Finds the layer that a node of a traced graph comes from: states and messages are named after it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

_LAYERS = ("torch.", "model_export.")
"""Packages whose layers a message names; of other modules it names the operator, too."""


def name_and_layer(node: Any, parts: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name that a node gets, and its layer as `described` returns it; empty: no layer.

    Args:
        node: A node as torch's older exporter has made it.
        parts: The modules in the attribute `module` of what was traced, by their paths.
    """
    path = _path_in_name(node.name, parts)
    if path is None or path not in parts:
        return str(node.name), ""
    layer = parts[path]
    if path and type(layer).__module__.startswith(_LAYERS):
        return path, f"Layer {path!r} ({type(layer).__name__})"
    operator = re.sub(r"_\d+$", "", re.split("[/.]", node.name)[-1])
    return ".".join(filter(None, [path, operator])), ""


def short_tensor_name(name: str) -> str:
    """Return a tensor's name without what that exporter adds: /module/encoder/MatMul_1_output_0."""
    if not name.startswith("/module/"):
        return name
    return name.removeprefix("/module").removesuffix("_output_0")


def _path_in_name(name: str, parts: Mapping[str, Any]) -> str | None:
    """Return the module in the name that the exporter gives: /module/encoder/layers.0/lstm_1/LSTM.

    Each part of it is a module's name from the last one that is no number, and the number of its call. The module that
    is traced is called `module`, so the second layer of an `nn.Sequential` is `module.1`.
    """
    first, *scopes = name.split("/")[1:-1] or [""]
    if first != "module":
        return None
    path, outer_last = "", sorted(parts, key=lambda other: -other.count("."))
    for scope in scopes:
        inner = {_scope(other): other for other in outer_last if other.startswith(path and f"{path}.")}
        found = inner.get(scope) or inner.get(re.sub(r"_\d+$", "", scope))
        if found is None:
            break
        path = found
    return path


@functools.cache
def _scope(path: str) -> str:
    match = re.search(r"[^.]*[^.\d][^.]*[.\d]*$", f"module.{path}")
    return match.group() if match else path
