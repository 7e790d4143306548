"""`check_candidate`: whether a version can be tried on the streams of another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from model_export.manifest import TensorSpec
from service.codec.releases import bad_release
from service.errors import ServiceError
from service.models.registry import ServedModel
from service.releases.document import Gate, Take

_MOST_NAMED: Final = 5


def translation_path(old_version: int, new: ServedModel) -> Path:
    """Return the file beside a version that translates the states of an older one."""
    return new.path.parent / f"translate-from-{old_version}.onnx"


def check_candidate(old: ServedModel, new: ServedModel, take: Take, *, has_translation: bool) -> None:
    """Check that a version accepts the streams of another one.

    Args:
        old: The current version.
        new: The candidate.
        take: How its states are made.
        has_translation: Whether the file `translation_path` exists.

    Raises:
        ServiceError: `release_refused`: inputs or outputs differ; with `keep`, the state schemas differ; with
            `translate`, there is no translation.
    """
    _check_equal("inputs", _specs(old.manifest.inputs), _specs(new.manifest.inputs), "Keep inputs as they are.")
    _check_equal("outputs", _specs(old.manifest.answered), _specs(new.manifest.answered), "Keep outputs as they are.")
    if take == "keep":
        fix = "Send `take`: `translate` with a translation beside the new version, or `reset`."
        _check_equal("states", _states(old), _states(new), fix)
    if take == "translate" and not has_translation:
        raise ServiceError(
            "release_refused",
            f"Version {new.version} has no {translation_path(old.version, new).name} beside it.",
            fix="Export the translation graph to this name, or send `take`: `reset`.",
        )


def check_gate(gate: Gate | None, new: ServedModel) -> None:
    """Check that a gate names outputs of the candidate only.

    Raises:
        ServiceError: `bad_release`.
    """
    outputs = [spec.name for spec in new.manifest.answered]
    unknown = [] if gate is None else sorted(gate.max_abs.keys() - set(outputs))
    if unknown:
        bad_release(
            f"`gate` has a limit for {_listed(unknown)}; the outputs are {_listed(outputs)}.", "Name outputs only."
        )


def _specs(specs: Sequence[TensorSpec]) -> dict[str, Any]:
    return {spec.name: (spec.dtype, list(spec.row_shape)) for spec in specs}


def _states(served: ServedModel) -> dict[str, Any]:
    return {field.name: (field.dtype.name, list(field.shape)) for field in served.step_model.fields}


def _check_equal(what: str, old: Mapping[str, Any], new: Mapping[str, Any], fix: str) -> None:
    if old == new:
        return
    differences = [
        f"{name!r} is {_described(old.get(name))} and would be {_described(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    raise ServiceError("release_refused", f"The {what} differ: {_listed(differences)}.", fix=fix)


def _described(spec: Any) -> str:
    return "missing" if spec is None else f"{spec[0]} {spec[1]}"


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MOST_NAMED
    return ", ".join(texts[:_MOST_NAMED]) + (f", and {more} more" if more > 0 else "")
