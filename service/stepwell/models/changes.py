"""What reloads have changed: for the log, for metrics, and for the errors of streams whose model was replaced."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from stepwell.models.served import ServedModel

_MAX_CHANGES: Final = 256


@dataclass(frozen=True, slots=True)
class ModelChange:
    """What a reload has changed.

    Attributes:
        kind: What happened to the served model.
        name: Its name.
        version: Its version.
        fingerprint: Of the model that is served now; of a retired one, its own.
        replaced: Fingerprint of the model that was served before; empty: none was.
    """

    kind: Literal["loaded", "replaced", "retired"]
    name: str
    version: int
    fingerprint: bytes
    replaced: bytes = b""

    def __str__(self) -> str:
        model = f"Model {self.name}/{self.version}"
        if self.kind == "loaded":
            return f"{model} was loaded, fingerprint {self.fingerprint.hex()}"
        if self.kind == "retired":
            return f"{model} was retired, fingerprint {self.fingerprint.hex()}; its streams continue with it"
        return (
            f"{model} was replaced, fingerprint {self.replaced.hex()} by {self.fingerprint.hex()}; streams of the "
            "replaced one continue with it"
        )


def changes_between(
    before: Mapping[str, Mapping[int, ServedModel]], after: Mapping[str, Mapping[int, ServedModel]]
) -> list[ModelChange]:
    """Return what changes from some served models, by name and version, to others."""
    changes = []
    for name in {*before, *after}:
        old_versions, new_versions = before.get(name, {}), after.get(name, {})
        for version in sorted({*old_versions, *new_versions}):
            old, new = old_versions.get(version), new_versions.get(version)
            if old is new:
                continue
            if new is None:
                assert old is not None
                changes.append(ModelChange("retired", name, version, old.fingerprint))
            elif old is None:
                changes.append(ModelChange("loaded", name, version, new.fingerprint))
            else:
                changes.append(ModelChange("replaced", name, version, new.fingerprint, old.fingerprint))
    return changes


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """The result of a reload.

    Attributes:
        loaded: `name/version` of each model that is new or was reloaded.
        failed: Path and reason of each file or folder that could not be loaded.
        not_kept: `name/version` and reason of each loaded model whose artifact is not kept.
        ignored: Files that look like models but are none, with what to do.
    """

    loaded: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    not_kept: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


class ModelHistory:
    """The models that were replaced or retired since the start, and the errors that name them."""

    def __init__(self) -> None:
        self._changes: dict[tuple[str, bytes], tuple[ModelChange, str]] = {}

    def add(self, change: ModelChange) -> None:
        """Add a change; the oldest ones are dropped."""
        if change.kind == "loaded":
            return
        fingerprint = change.replaced or change.fingerprint
        self._changes[change.name, fingerprint] = change, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if len(self._changes) > _MAX_CHANGES:
            del self._changes[next(iter(self._changes))]

    def missing(self, name: str, fingerprint: bytes, why: str) -> tuple[str, str]:
        """Return problem and fix for a state whose model cannot be loaded.

        Args:
            name: The model's name.
            fingerprint: Of the model that wrote the state.
            why: Why it cannot be loaded, as the end of a sentence.
        """
        version, happened = self._happened(name, fingerprint)
        problem = (
            f"The state was written by model {fingerprint.hex()}, which is not loaded here as {name}: {why}.{happened}"
        )
        return problem, f"{_put_back(name, version)} Or reset the stream."

    def other(self, writer: ServedModel, requested: ServedModel, *, is_served: bool) -> tuple[str, str]:
        """Return problem and fix for a request that would run another version than the one that wrote the state.

        Args:
            writer: The version that wrote the state.
            requested: The version that would run.
            is_served: Whether `writer` can be requested by its version.
        """
        name, version = writer.name, writer.version
        problem = (
            f"The state was written by version {version} of {name} ({writer.fingerprint.hex()}); this request would "
            f"run version {requested.version} ({requested.fingerprint.hex()})"
        )
        if _inputs(writer) == _inputs(requested):
            return f"{problem}.", "Leave `version` out to continue with the stream's own version, or reset the stream."
        problem += f", which has other inputs: {_inputs(requested)} instead of {_inputs(writer)}."
        if is_served:
            return problem, f"Send the inputs of version {version} with ?version={version}, or reset the stream."
        fix = f"{_put_back(name, version)} Then send ?version={version}. Or reset the stream."
        return problem + self._happened(name, writer.fingerprint)[1], fix

    def _happened(self, name: str, fingerprint: bytes) -> tuple[int, str]:
        """Return the version that a replaced or retired model had, and a sentence about it; if unknown, 1 and none."""
        change, at = self._changes.get((name, fingerprint), (None, ""))
        if change is None:
            return 1, ""
        how = f"replaced by {change.fingerprint.hex()}" if change.kind == "replaced" else "removed"
        return change.version, f" It was version {change.version} until {at}, when its file was {how}."


def _put_back(name: str, version: int) -> str:
    return (
        f"Put the file that wrote it back, as models/{name}/{version}/model.onnx, and a new one under a higher "
        "version, and POST /v1/models/reload."
    )


def _inputs(served: ServedModel) -> str:
    return ", ".join(f"{spec.name} {spec.dtype}{list(spec.row_shape)}" for spec in served.inputs)
