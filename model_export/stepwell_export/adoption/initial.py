"""The initial states of a stream: set by a person, or written in the ONNX file's metadata.

Metadata is a matter of habit. What is read: `<state>_init`, `init_<state>`, `initial_<state>` and the like, whose words
but for `init` or `initial` (and `state`) are those of the state's name; and, where a model packs all it keeps into one
state, `<part>_init` beside `<part>_state_size` for parts that fill it from its start in the order in which the file
has them, zeros behind (as DPDFNet has it). A value is a JSON number or list, numbers with commas or spaces between
them, or base64 of the little-endian bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepwell_export.adoption.axes import ShapedTensor
from stepwell_export.adoption.pairing import split_words, stems_of_state
from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.manifest import Array

_INIT = {"init", "initial"}


def find_initial(
    states: Sequence[ShapedTensor], said: Mapping[str, Any], metadata: Mapping[str, str], notes: list[str]
) -> dict[str, Array]:
    """Return what each state starts from that does not start from zeros, shape and dtype of its row.

    Args:
        states: The states of the graph, and its windows' past parts.
        said: See `adopt_file`, `initial`; it wins over the metadata.
        metadata: The ONNX file's own, in its order.
        notes: What was found in the metadata is added here.

    Raises:
        UnclearModelError: A flag or the metadata does not fit a state.
    """
    known = {state.name: state for state in states}
    for name in said:
        if name not in known:
            raise UnclearModelError(
                f"`--init` names {name!r}; the states are {list(known)}.", fix="Use the name of a state input."
            )
    values = {name: _fit(known[name], value, f"`--init {name}`") for name, value in said.items()}
    entries = {key: value for key, value in metadata.items() if _INIT & set(split_words(key))}
    for state in [state for state in states if state.name not in said]:
        for key in [key for key in entries if _names_of(key) & _names_of_state(state.name)]:
            values[state.name] = _fit(state, _parse(key, entries.pop(key), state.dtype), f"Metadata {key!r}")
            notes.append(f"{state.name} starts from metadata {key}")
    if len(states) == 1 and states[0].name not in values:
        values |= _packed(states[0], entries, metadata, notes)
    return {name: value for name, value in values.items() if value.any()}


def _packed(
    state: ShapedTensor, entries: dict[str, str], metadata: Mapping[str, str], notes: list[str]
) -> dict[str, Array]:
    """Return the one state that parts in the metadata fill from its start."""
    parts = {}
    for key, value in entries.items():
        part = re.sub(r"_?init(ial)?$", "", key, flags=re.IGNORECASE)
        size = metadata.get(f"{part}_state_size") or metadata.get(f"{part}_size")
        if size is not None:
            parts[key] = _parse(key, value, state.dtype).ravel()
            if str(parts[key].size) != size.strip():
                raise UnclearModelError(
                    f"Metadata {key!r} has {parts[key].size} numbers; expected {size}, as the metadata says.",
                    fix=f"Say what the state starts from: `--init {state.name}=VALUE` or `--init FILE.npz`.",
                )
    if not parts:
        return {}
    values = np.concatenate(list(parts.values()))
    room = math.prod(state.shape) - values.size
    if room < 0:
        _fit(state, values, f"Metadata {', '.join(parts)}")
    notes.append(f"{state.name} starts from metadata {', '.join(parts)}, in this order{', then zeros' * bool(room)}")
    return {state.name: np.pad(values, (0, max(room, 0))).reshape(state.shape)}


def _fit(state: ShapedTensor, value: Any, what: str) -> Array:
    """Return a value as one row of a state."""
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray("")
    size = math.prod(state.shape)
    numbers = array.dtype.kind in "biuf" and (np.dtype(state.dtype).kind == "f" or array.dtype.kind != "f")
    with np.errstate(over="ignore"):
        fits = numbers and array.size in (1, size) and bool(np.isfinite(array.astype(state.dtype)).all())
    if not fits:
        found = f"{list(array.shape)} of {array.dtype}" if numbers else repr(value)[:60]
        raise UnclearModelError(
            f"{what} is {found}; state {state.name!r} has the row {list(state.shape)} of {state.dtype}.",
            fix=f"Give one finite number for all of it, or {size}: `--init {state.name}=VALUE` or `--init FILE.npz`.",
        )
    if array.size == 1:
        return np.full(state.shape, array.ravel()[0], state.dtype)
    return array.astype(state.dtype).reshape(state.shape)


def _parse(key: str, text: str, dtype: str) -> Array:
    try:
        return np.asarray(json.loads(text), dtype)
    except (ValueError, TypeError):
        pass
    try:
        return np.asarray([float(part) for part in re.split(r"[,;\s]+", text.strip(" \t\n[]")) if part], dtype)
    except ValueError:
        pass
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), np.dtype(dtype).newbyteorder("<")).astype(dtype)
    except (binascii.Error, ValueError) as exc:
        raise UnclearModelError(
            f"Metadata {key!r} is {text[:40]!r}; expected numbers in JSON, with commas, or as base64 of {dtype}.",
            fix="Say what the state starts from: `--init STATE=VALUE` or `--init FILE.npz`.",
        ) from exc


def _names_of(key: str) -> set[tuple[str, ...]]:
    words = tuple(word for word in split_words(key) if word not in _INIT)
    return {words, _without_state(words)} - {()}


def _names_of_state(name: str) -> set[tuple[str, ...]]:
    stems = stems_of_state(name)
    return (stems | {_without_state(stem) for stem in stems}) - {()}


def _without_state(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in words if word != "state")
