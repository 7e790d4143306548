"""`ModelRegistry`: the models by name and version; finds, loads, swaps and retires them."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from model_export.errors import StepwellError
from model_export.feedback import fault_of
from model_export.manifest import NAME, InputSpec, Manifest, sidecar_of
from model_export.step_model import StepModel
from service.errors import ServiceError

_log = logging.getLogger(__name__)
_MAX_RETIRED = 4  # replaced models that go on serving the streams they began, per name


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One version of one model, loaded and probed.

    Attributes:
        name: As in the path, not as in the manifest.
        version: From 1; a flat file is version 1.
        step_model: The session.
        path: The file it came from.
        stamp: What the file looked like when it was read; another stamp means another model.
    """

    name: str
    version: int
    step_model: StepModel
    path: Path
    file_signature: tuple[int, ...]

    @property
    def manifest(self) -> Manifest:
        """What the model takes, gives and carries."""
        return self.step_model.manifest

    @property
    def inputs(self) -> list[InputSpec]:
        """The inputs in the order in which a timestep brings them: that of their names."""
        return sorted(self.manifest.inputs, key=lambda spec: spec.name)

    @property
    def timestep_bytes(self) -> int:
        """Bytes of the inputs of one timestep."""
        return sum(np.dtype(spec.dtype).itemsize * math.prod(spec.row_shape) for spec in self.manifest.inputs)

    @property
    def fingerprint(self) -> bytes:
        """8 bytes that name graph, weights and state schema."""
        return self.step_model.fingerprint

    @property
    def stateful(self) -> bool:
        """Whether a stream carries anything from step to step."""
        return self.step_model.state_bytes > 0


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a look at the folders changed.

    Attributes:
        loaded: `name/version` of each model that is new or was read again.
        failed: Path and reason of each file that could not be served.
    """

    loaded: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


Loader = Callable[[Path], StepModel]


class ModelRegistry:
    """Models that can be served; a reload replaces the whole picture at once."""

    def __init__(self, folders: Sequence[Path], load: Loader = StepModel) -> None:
        """Remember where models lie; `reload` reads them.

        Args:
            folders: Looked through in this order; the first that has a name wins.
            load: Makes a `StepModel` of a file.
        """
        self._folders = list(folders)
        self._load = load
        self._models: dict[str, dict[int, ServedModel]] = {}  # versions by name, the default first
        self._served: dict[tuple[str, int | None], ServedModel] = {}  # the same by name and what may be asked for
        self._retired: dict[str, list[ServedModel]] = {}
        self.generation = 0  # grows when other models serve
        self._reload_lock = asyncio.Lock()

    def names(self) -> list[str]:
        """Return the models' names, sorted."""
        return sorted(self._models)

    def versions(self, name: str) -> list[int]:
        """Return a model's versions, ascending; the last is the default."""
        return sorted(self._models.get(name, ()))

    def get(self, name: str, version: int | None = None) -> ServedModel:
        """Return a version of a model, by default the highest.

        Raises:
            ServiceError: `model_not_found`.
        """
        served = self._served.get((name, version))
        if served is not None:
            return served
        if name not in self._models:
            known = ", ".join(self.names()[:20]) or "none"
            raise ServiceError(
                "model_not_found",
                f"There is no model {name[:64]!r}; models are: {known}.",
                fix="Check the name, or put the file into the models folder and POST /v1/models/reload.",
            )
        raise ServiceError(
            "model_not_found",
            f"Model {name!r} has no version {version}; versions are {sorted(self._models[name])}.",
            fix="Leave `version` out for the highest one.",
        )

    def by_fingerprint(self, name: str, fingerprint: bytes) -> ServedModel | None:
        """Return the version that wrote a record, also one that was replaced since."""
        candidates = [*self._models.get(name, {}).values(), *self._retired.get(name, [])]
        return next((model for model in candidates if model.fingerprint == fingerprint), None)

    def is_current(self, model: ServedModel) -> bool:
        """Whether this very model is the one served under its name and version."""
        return self._models.get(model.name, {}).get(model.version) is model

    async def reload(self) -> ReloadReport:
        """Look through the folders again: load what is new or changed, drop what is gone.

        A file that fails leaves the version that was served before in its place.
        """
        async with self._reload_lock:
            return await asyncio.to_thread(self._reload)

    def _reload(self) -> ReloadReport:
        report = ReloadReport()
        found: dict[str, dict[int, ServedModel]] = {}
        for name, version, path in self._files(report):
            if version in found.get(name, {}):
                continue
            model = before = self._models.get(name, {}).get(version)
            try:
                model = self._newest(name, version, path, before)
                if model is not before:
                    report.loaded.append(f"{name}/{version}")
            except StepwellError as exc:
                report.failed.append(f"{path.name}: {str(exc).replace(f'{path.parent}{os.sep}', '')}")
            except OSError as exc:
                report.failed.append(_unreadable(path, exc))
            if model is not None:
                found.setdefault(name, {})[version] = model
        self._retire(found)
        models = {name: dict(sorted(versions.items(), reverse=True)) for name, versions in found.items()}
        served: dict[tuple[str, int | None], ServedModel] = {}
        for name, versions in models.items():
            served[name, None] = next(iter(versions.values()))
            served.update({(name, version): model for version, model in versions.items()})
        is_changed = served != self._served
        self._models, self._served = models, served
        if is_changed:
            self.generation += 1  # last: what is found out at a generation is of its models
        return report

    def _newest(self, name: str, version: int, path: Path, before: ServedModel | None) -> ServedModel:
        """Return the model of a file: the one that was loaded before, unless the file has changed since."""
        stamp = _file_signature(path, before)
        if before is not None and before.file_signature == stamp and before.path == path:
            return before
        model = ServedModel(name, version, self._load(path), path, stamp)
        if model.step_model.weight_files:
            model = replace(model, file_signature=_file_signature(path, model))
        _warn_about_feedback(model)
        return model

    def _retire(self, found: dict[str, dict[int, ServedModel]]) -> None:
        for name, versions in self._models.items():
            for version, model in versions.items():
                if found.get(name, {}).get(version) is not model:
                    self._retired.setdefault(name, []).insert(0, model)
                    del self._retired[name][_MAX_RETIRED:]

    def _files(self, report: ReloadReport) -> Iterable[tuple[str, int, Path]]:
        """Find `NAME.onnx` and `NAME/VERSION/model.onnx`. What cannot be read now keeps the models that it had."""
        for folder in self._folders:
            try:
                if not folder.is_dir():
                    report.failed.append(f"{folder.name}: there is no such folder")
                    continue
                entries = sorted(folder.iterdir())
            except OSError as exc:
                yield from self._known_in(folder, exc, report)
                continue
            for entry in entries:
                try:
                    yield from list(_models_in(entry, folder, report))
                except OSError as exc:
                    yield from self._known_in(entry, exc, report)

    def _known_in(self, unreadable: Path, exc: OSError, report: ReloadReport) -> Iterable[tuple[str, int, Path]]:
        """Report a file or folder that cannot be read, and return the models that were found there before."""
        report.failed.append(_unreadable(unreadable, exc))
        for versions in self._models.values():
            for model in versions.values():
                if model.path.is_relative_to(unreadable):
                    yield model.name, model.version, model.path


def _models_in(entry: Path, folder: Path, report: ReloadReport) -> Iterable[tuple[str, int, Path]]:
    """Return name, version and file of the models that an entry of a models folder has."""
    if entry.name.startswith("."):
        return
    if entry.is_file() and entry.suffix == ".onnx":
        where = [(entry.stem, "1", entry)]
    elif entry.is_dir():
        where = [(entry.name, sub.name, sub / "model.onnx") for sub in sorted(entry.iterdir())]
    else:
        return
    for name, version, path in where:
        if not path.is_file():
            continue
        if not NAME.fullmatch(name) or not version.isdecimal() or not 0 < int(version) < 2**31:
            report.failed.append(f"{name}/{version}: names are {NAME.pattern}, versions 1, 2, 3 ...")
        elif not path.resolve().is_relative_to(folder.resolve()):
            report.failed.append(f"{name}/{version}: the file lies outside its models folder")
        else:
            yield name, int(version), path


def _unreadable(path: Path, exc: OSError) -> str:
    return f"{path.name}: cannot be read: {exc.strerror or exc}"


def _warn_about_feedback(model: ServedModel) -> None:
    """Say in the log where a model's own feedback cannot be used; it is served all the same."""
    if (fault := fault_of(model.manifest)) is not None:
        _log.warning("Model %s/%d can be rolled out by rules of the request only: %s", model.name, model.version, fault)


def _file_signature(path: Path, known: ServedModel | None) -> tuple[int, ...]:
    """Return what changes when a model file, its sidecar or its weights, as far as they are known, change."""
    parts: list[int] = []
    files = {path, sidecar_of(path)}
    if known is not None and known.path == path:
        files.update(known.step_model.weight_files)
    for file in sorted(files):
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue
        parts += (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return tuple(parts)
