"""`ModelRegistry`: the served models by name and version; finds, loads, replaces and retires them."""

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
from service.models.paired import PairedModel
from service.models.pairs import LoadedPairs

_log = logging.getLogger(__name__)
_MAX_RETIRED = 4  # replaced models, per name, that still serve the streams with their states


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One version of one model, loaded and probed.

    Attributes:
        name: The name by which it is requested: that of the file or folder, not that in the manifest.
        version: From 1; a file directly in a models folder is version 1.
        step_model: The loaded model.
        path: The model file.
        file_signature: Modification times, sizes and inodes of the model's files when it was loaded; the model is
            reloaded if they change.
        halves: Of a pair, its old version and its candidate; None: it is one version. The version of a pair is that of
            the half that responds.
    """

    name: str
    version: int
    step_model: StepModel | PairedModel
    path: Path
    file_signature: tuple[int, ...]
    halves: tuple[ServedModel, ServedModel] | None = None

    @property
    def manifest(self) -> Manifest:
        """The model's manifest: inputs, outputs and states."""
        return self.step_model.manifest

    @property
    def inputs(self) -> list[InputSpec]:
        """The inputs, sorted by name, as a timestep has them."""
        return sorted(self.manifest.inputs, key=lambda spec: spec.name)

    @property
    def timestep_bytes(self) -> int:
        """Bytes of the inputs of one timestep."""
        return sum(np.dtype(spec.dtype).itemsize * math.prod(spec.row_shape) for spec in self.manifest.inputs)

    @property
    def fingerprint(self) -> bytes:
        """8 bytes that identify graph, weights and state schema."""
        return self.step_model.fingerprint

    @property
    def stateful(self) -> bool:
        """Whether a stream has a state."""
        return self.step_model.state_bytes > 0


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """The result of a reload.

    Attributes:
        loaded: `name/version` of each model that is new or was reloaded.
        failed: Path and reason of each file or folder that could not be loaded.
    """

    loaded: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


Loader = Callable[[Path], StepModel]


class ModelRegistry:
    """The models that can be served; a reload replaces all of them at once.

    Attributes:
        pairs: The pairs of versions that records name.
        generation: Grows when the served models change.
    """

    def __init__(self, folders: Sequence[Path], load: Loader = StepModel) -> None:
        """Create an empty registry; `reload` loads the models.

        Args:
            folders: Models folders; if several have a model, that of the first folder is used.
            load: Loads a model file.
        """
        self._folders = list(folders)
        self._load = load
        self._models: dict[str, dict[int, ServedModel]] = {}  # by name, then by version; the default version first
        self._served: dict[tuple[str, int | None], ServedModel] = {}  # the same by name and requested version
        self._retired: dict[str, list[ServedModel]] = {}
        self.pairs = LoadedPairs(_served_pair)
        self.generation = 0
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
        """Return the model that wrote a record, or None; it may have been replaced since."""
        candidates = [*self._models.get(name, {}).values(), *self._retired.get(name, [])]
        found = next((model for model in candidates if model.fingerprint == fingerprint), None)
        return found or self.pairs.get(name, fingerprint, self.by_fingerprint)

    def is_current(self, model: ServedModel) -> bool:
        """Whether this model is the one that is served under its name and version."""
        return self._models.get(model.name, {}).get(model.version) is model

    async def reload(self) -> ReloadReport:
        """Load new and changed model files, and retire the models whose files were removed.

        If a file cannot be loaded, the model that was loaded before is still served.
        """
        async with self._reload_lock:
            return await asyncio.to_thread(self._reload)

    def _reload(self) -> ReloadReport:
        report = ReloadReport()
        by_name: dict[str, dict[int, ServedModel]] = {}
        for name, version, path in self._files(report):
            if version in by_name.get(name, {}):
                continue
            model = loaded = self._models.get(name, {}).get(version)
            try:
                model = self._load_if_changed(name, version, path, loaded)
                if model is not loaded:
                    report.loaded.append(f"{name}/{version}")
            except StepwellError as exc:
                report.failed.append(f"{path.name}: {str(exc).replace(f'{path.parent}{os.sep}', '')}")
            except OSError as exc:
                report.failed.append(_unreadable(path, exc))
            if model is not None:
                by_name.setdefault(name, {})[version] = model
        self._retire(by_name)
        models = {name: dict(sorted(versions.items(), reverse=True)) for name, versions in by_name.items()}
        served: dict[tuple[str, int | None], ServedModel] = {}
        for name, versions in models.items():
            served[name, None] = next(iter(versions.values()))
            served.update({(name, version): model for version, model in versions.items()})
        is_changed = served != self._served
        self._models, self._served = models, served
        if is_changed:
            self.generation += 1  # last: what is cached for a generation must come from its models
        return report

    def _load_if_changed(self, name: str, version: int, path: Path, loaded: ServedModel | None) -> ServedModel:
        """Return the model of a file: the one loaded before, if the file has not changed."""
        signature = _file_signature(path, loaded)
        if loaded is not None and loaded.file_signature == signature and loaded.path == path:
            return loaded
        model = ServedModel(name, version, self._load(path), path, signature)
        if model.step_model.weight_files:
            model = replace(model, file_signature=_file_signature(path, model))
        _warn_about_feedback(model)
        return model

    def _retire(self, by_name: dict[str, dict[int, ServedModel]]) -> None:
        for name, versions in self._models.items():
            for version, model in versions.items():
                if by_name.get(name, {}).get(version) is not model:
                    self._retired.setdefault(name, []).insert(0, model)
                    del self._retired[name][_MAX_RETIRED:]

    def _files(self, report: ReloadReport) -> Iterable[tuple[str, int, Path]]:
        """Yield `NAME.onnx` and `NAME/VERSION/model.onnx`; for unreadable files and folders, their loaded models."""
        for folder in self._folders:
            try:
                if not folder.is_dir():
                    report.failed.append(f"{folder.name}: there is no such folder")
                    continue
                entries = sorted(folder.iterdir())
            except OSError as exc:
                yield from self._loaded_from(folder, exc, report)
                continue
            for entry in entries:
                try:
                    yield from list(_models_in(entry, folder, report))
                except OSError as exc:
                    yield from self._loaded_from(entry, exc, report)

    def _loaded_from(self, unreadable: Path, exc: OSError, report: ReloadReport) -> Iterable[tuple[str, int, Path]]:
        """Report a file or folder that cannot be read, and yield the models that were loaded from it."""
        report.failed.append(_unreadable(unreadable, exc))
        for versions in self._models.values():
            for model in versions.values():
                if model.path.is_relative_to(unreadable):
                    yield model.name, model.version, model.path


def _served_pair(old: ServedModel, new: ServedModel, paired: PairedModel) -> ServedModel:
    version = old.version if paired.mode == "shadow" else new.version
    return ServedModel(new.name, version, paired, new.path, (), (old, new))


def _models_in(entry: Path, folder: Path, report: ReloadReport) -> Iterable[tuple[str, int, Path]]:
    """Yield name, version and file of each model in an entry of a models folder."""
    if entry.name.startswith("."):
        return
    if entry.is_file() and entry.suffix == ".onnx":
        candidates = [(entry.stem, "1", entry)]
    elif entry.is_dir():
        candidates = [(entry.name, sub.name, sub / "model.onnx") for sub in sorted(entry.iterdir())]
    else:
        return
    for name, version, path in candidates:
        if not path.is_file():
            continue
        if not NAME.fullmatch(name) or not version.isdecimal() or not 0 < int(version) < 2**31:
            report.failed.append(f"{name}/{version}: expected a name like {NAME.pattern}, and a version from 1")
        elif not path.resolve().is_relative_to(folder.resolve()):
            report.failed.append(
                f"{name}/{version}: the file is outside its models folder; expected no link to another folder"
            )
        else:
            yield name, int(version), path


def _unreadable(path: Path, exc: OSError) -> str:
    return f"{path.name}: cannot be read: {exc.strerror or exc}"


def _warn_about_feedback(model: ServedModel) -> None:
    """Log a warning if the feedback rules in a model's manifest cannot be used; the model is served anyway."""
    if (problem := fault_of(model.manifest)) is not None:
        _log.warning(
            "Model %s/%d has unusable feedback rules; a rollout needs rules in its request: %s",
            model.name,
            model.version,
            problem,
        )


def _file_signature(path: Path, known: ServedModel | None) -> tuple[int, ...]:
    """Return modification times, sizes and inodes of a model file, its sidecar and the weight files of `known`."""
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
