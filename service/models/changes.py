"""What reloads have changed: for the log, for metrics, and for the errors of streams whose model was replaced."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from service.models.registry import ServedModel

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


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """The result of a reload.

    Attributes:
        loaded: `name/version` of each model that is new or was reloaded.
        failed: Path and reason of each file or folder that could not be loaded.
        not_kept: `name/version` and reason of each loaded model whose artifact is not kept.
    """

    loaded: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    not_kept: list[str] = field(default_factory=list)


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
        """Return problem and fix for a state whose model is not to be had.

        Args:
            name: The model's name.
            fingerprint: Of the model that wrote the state.
            why: Why it cannot be loaded, as the end of a sentence.
        """
        change, at = self._changes.get((name, fingerprint), (None, ""))
        happened, version = "", 1
        if change is not None:
            version = change.version
            happened = f" It was version {version} until {at}, when its file was " + (
                f"replaced by {change.fingerprint.hex()}." if change.kind == "replaced" else "removed."
            )
        problem = (
            f"The state was written by model {fingerprint.hex()}, which is not loaded here as {name}: {why}.{happened}"
        )
        fix = (
            f"Put the file that wrote it back, as models/{name}/{version}/model.onnx, and a new one under a higher "
            "version; then POST /v1/models/reload. Or reset the stream."
        )
        return problem, fix

    @staticmethod
    def other(writer: ServedModel, requested: ServedModel) -> tuple[str, str]:
        """Return problem and fix for a request that would run another version than the one that wrote the state."""
        problem = (
            f"The state was written by version {writer.version} of {writer.name} ({writer.fingerprint.hex()}); this "
            f"request would run version {requested.version} ({requested.fingerprint.hex()})"
        )
        if _inputs(writer) == _inputs(requested):
            return f"{problem}.", "Leave `version` out to continue with the stream's own version, or reset the stream."
        return (
            f"{problem}, which has other inputs: {_inputs(requested)} instead of {_inputs(writer)}.",
            f"Send the inputs of version {writer.version} with ?version={writer.version}, or reset the stream.",
        )


def _inputs(served: ServedModel) -> str:
    return ", ".join(f"{spec.name} {spec.dtype}{list(spec.row_shape)}" for spec in served.inputs)
