"""`ModelRegistry`: the served models by name and version; finds, loads, replaces and retires them."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from stepwell.errors import ServiceError
from stepwell.models import files
from stepwell.models.artifacts import Artifacts, LoadModel
from stepwell.models.changes import ModelChange, ModelHistory, ReloadReport, changes_between
from stepwell.models.joined import JoinedModels
from stepwell.models.retired import RetiredModels
from stepwell.models.served import ServedModel
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.feedback import fault_of
from stepwell_export.runtime.step_model import StepModel

_log = logging.getLogger(__name__)


class ModelRegistry:
    """The models that can be served; a reload replaces all of them at once.

    Attributes:
        joined: Finds the models that an add-on joins of several versions.
        artifacts: Keeps models for other replicas and later starts.
        generation: Grows when the served models change.
        unloaded: Names of models that `reload` does not load, although their files are there.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        load: LoadModel = StepModel,
        artifacts: Artifacts | None = None,
        *,
        find_timeout_s: float = 10.0,
        retired_ttl_s: float = math.inf,
        on_change: Callable[[ModelChange], None] | None = None,
    ) -> None:
        """Create an empty registry; `reload` loads the models.

        Args:
            folders: Models folders; if several have a model, that of the first folder is used.
            load: Loads a model file.
            artifacts: Keeps the models that records name, and loads those that are not in the folders; None: neither.
            find_timeout_s: Longest wait in seconds for a model that is loaded from its artifact.
            retired_ttl_s: Seconds after which a model that is not in the folders is dropped unless it is used.
            on_change: Called for each model that was loaded, replaced or retired, in any thread.
        """
        self._folders = list(folders)
        self._load = load
        self.artifacts = Artifacts() if artifacts is None else artifacts
        self._on_change = on_change
        self._models: dict[str, dict[int, ServedModel]] = {}  # by name, then by version; the highest first
        self._served: dict[tuple[str, int | None], ServedModel] = {}  # the same by name and requested version
        load_artifact = None if self.artifacts.is_off else self._load_artifact
        self._retired = RetiredModels(load_artifact, timeout=find_timeout_s, ttl_s=retired_ttl_s)
        self._history = ModelHistory()
        self._current: dict[str, ServedModel] = {}  # the default versions that `set_current` set
        self.joined = JoinedModels()
        self.generation = 0
        self.unloaded: frozenset[str] = frozenset()
        self._reload_lock = asyncio.Lock()

    def names(self) -> list[str]:
        """Return the models' names, sorted."""
        return sorted(self._models)

    def versions(self, name: str) -> list[int]:
        """Return the versions of a model that can be requested, ascending."""
        default = self._served.get((name, None))
        return sorted({*self._models.get(name, ()), *([] if default is None else [default.version])})

    def get(self, name: str, version: int | None = None) -> ServedModel:
        """Return a version of a model, by default the one that `set_current` set, else the highest.

        Raises:
            ServiceError: `model_not_found`.
        """
        served = self._served.get((name, version))
        if served is not None:
            return served
        if name in self.unloaded:
            raise ServiceError(
                "model_not_found",
                f"The model {name!r} was unloaded.",
                fix=f"POST /v2/repository/models/{name}/load to serve it again; its streams are still there.",
            )
        if name not in self._models:
            known = ", ".join(self.names()[:20]) or "none"
            raise ServiceError(
                "model_not_found",
                f"There is no model {name[:64]!r}; models are: {known}.",
                fix="Check the name, or put the file into the models folder and POST /v1/models/reload.",
            )
        raise ServiceError(
            "model_not_found",
            f"Model {name!r} has no version {version}; versions are {self.versions(name)}.",
            fix="Leave `version` out for the current one.",
        )

    def by_fingerprint(self, name: str, fingerprint: bytes) -> ServedModel | None:
        """Return the model that wrote a record if it is loaded, or None; it may have been replaced since."""
        for model in self._models.get(name, {}).values():
            if model.fingerprint == fingerprint:
                return model
        return self._retired.get(name, fingerprint) or self.joined.get(name, fingerprint)

    async def find(self, name: str, fingerprint: bytes, state: bytes = b"") -> ServedModel | None:
        """Return the model that wrote a record, also if it is in no folder here any more.

        A model that is not in memory is loaded from its artifact, once for all callers, after the same vetting as a
        file of a models folder. An artifact that could not be loaded is not tried again for two seconds. The parts of
        a joined model are found likewise.

        Args:
            name: The model's name.
            fingerprint: The record's fingerprint.
            state: The record's packed state, which shows which versions are joined.

        Returns:
            None: There is no such model here, and no artifact of it that could be loaded; `why_missing` has the reason.

        Raises:
            ServiceError: The store did not reply; or `overloaded`: the model was not loaded in time, but soon may be.
        """
        self.joined.announce(name, fingerprint, state)
        if (loaded := self.by_fingerprint(name, fingerprint)) is not None:
            return loaded
        if not (parts := self.joined.parts(name, fingerprint)):
            return await self._retired.find(name, fingerprint)
        for part in parts:
            if await self.find(name, part) is None:
                return None
        return self.by_fingerprint(name, fingerprint)

    def may_find(self, name: str, fingerprint: bytes) -> bool:
        """Whether `find` may return a model that `by_fingerprint` does not return."""
        if not (parts := self.joined.parts(name, fingerprint)):
            return self._retired.may_find(name, fingerprint)
        return all(self.by_fingerprint(name, part) is not None or self._retired.may_find(name, part) for part in parts)

    def why_missing(self, name: str, fingerprint: bytes) -> str:
        """Return why `find` returned no model, as the end of a sentence."""
        parts = self.joined.parts(name, fingerprint)
        missing = next((part for part in parts if self.by_fingerprint(name, part) is None), fingerprint)
        return self._retired.why_missing(name, missing)

    async def keep(self, name: str, fingerprint: bytes, deadline: float) -> None:
        """Store the artifact of a model unless it is stored; call it before a record that may be the first to name it.

        Args:
            name: The model's name.
            fingerprint: Of the model.
            deadline: On the running loop's clock.

        Raises:
            ServiceError: The store did not reply.
        """
        if (model := await self.find(name, fingerprint)) is not None:
            for artifact in model.artifacts:
                await artifact.ensure(deadline)

    def changed_error(
        self,
        name: str,
        fingerprint: bytes,
        requested: ServedModel | None = None,
        *,
        fix: str = "",
        step: int | None = None,
        state_id: bytes | None = None,
    ) -> ServiceError:
        """Return the `model_changed` error for a state whose model cannot be run, or is not the requested one.

        Args:
            name: The model's name.
            fingerprint: Of the model that wrote the state.
            requested: The version that the request names.
            fix: What to do; empty: to be derived.
            step: The stream's step, if there is a stream.
            state_id: The stream's state id, if there is a stream.
        """
        found = self.by_fingerprint(name, fingerprint)
        if found is None:
            problem, advice = self._history.missing(name, fingerprint, self.why_missing(name, fingerprint))
        else:
            wanted = self.get(name) if requested is None else requested
            problem, advice = self._history.other(found, wanted, is_served=self.is_current(found))
        return ServiceError("model_changed", problem, fix=fix or advice, step=step, state_id=state_id)

    def close(self) -> None:
        """Delete the copies of the models' files."""
        self.artifacts.close()

    def drop_unused(self) -> None:
        """Drop the models that are not in the folders and that no stream can name any more."""
        self._retired.drop_unused()

    async def _load_artifact(self, name: str, fingerprint: bytes) -> ServedModel | None:
        if (found := await self.artifacts.load(name, fingerprint)) is None:
            return None
        return ServedModel(name, found.version, found.model, found.path, (), found.artifact)

    def is_current(self, model: ServedModel) -> bool:
        """Whether this model is the one that is served under its name and version."""
        return self._served.get((model.name, model.version)) is model

    def set_current(self, name: str, model: ServedModel | None) -> None:
        """Set the default version of a model, which may be one that is no longer in a folder; None: the highest."""
        if model is None:
            self._current.pop(name, None)
        else:
            self._current[name] = model
        if name not in self._models:
            return
        others = {key: one for key, one in self._served.items() if key[0] != name}
        served = others | self._requestable(name, self._models[name])
        if served != self._served:
            self._served = served
            self.generation += 1

    def _requestable(self, name: str, versions: dict[int, ServedModel]) -> dict[tuple[str, int | None], ServedModel]:
        """Return what requests of a model lead to, by the version that they name.

        The default is of a folder if the set one is in it. Else it is served under its own version, too, unless that of
        a folder is another file.

        Args:
            name: The model's name.
            versions: The versions in the folders, the highest first.
        """
        current, default = self._current.get(name), next(iter(versions.values()))
        if current is not None:
            same = (model for model in versions.values() if model.fingerprint == current.fingerprint)
            default = next(same, current)
        return {(name, None): default, (name, default.version): default} | {
            (name, version): model for version, model in versions.items()
        }

    async def reload(self) -> ReloadReport:
        """Load new and changed model files, and retire the models whose files were removed.

        If a file cannot be loaded, the model that was loaded before is still served.
        """
        async with self._reload_lock:
            return await asyncio.to_thread(self._reload)

    def _reload(self) -> ReloadReport:
        report = ReloadReport()
        by_name: dict[str, dict[int, ServedModel]] = {}
        for name, version, path in files.find(self._folders, self._models, report):
            if name in self.unloaded:
                continue
            if (other := by_name.get(name, {}).get(version)) is not None:
                if path != other.path:  # else the folder is named twice
                    report.ignored.append(f"{path}: {name}/{version} is {other.path} already; rename one of them")
                continue
            model = loaded = self._models.get(name, {}).get(version)
            try:
                model = self._load_if_changed(name, version, path, loaded)
                if model is not loaded:
                    report.loaded.append(f"{name}/{version}")
            except StepwellError as exc:
                report.failed.append(f"{path.name}: {str(exc).replace(f'{path.parent}{os.sep}', '')}")
            except OSError as exc:
                report.failed.append(files.unreadable(path, exc))
            if model is not None:
                by_name.setdefault(name, {})[version] = model
                if model.artifact.reason:
                    report.not_kept.append(f"{name}/{version}: {model.artifact.reason}")
        changes = changes_between(self._models, by_name)
        for name, versions in self._models.items():
            for version, model in sorted(versions.items()):
                if by_name.get(name, {}).get(version) is not model:
                    self._retired.add(model)
        models = {name: dict(sorted(versions.items(), reverse=True)) for name, versions in by_name.items()}
        served: dict[tuple[str, int | None], ServedModel] = {}
        for name, versions in models.items():
            served |= self._requestable(name, versions)
        is_changed = served != self._served
        self._models, self._served = models, served
        if is_changed:
            self.generation += 1  # last: what is cached for a generation must come from its models
        for change in changes:
            self._history.add(change)
            _log.info("%s", change)
            if self._on_change is not None:
                self._on_change(change)
        return report

    def _load_if_changed(self, name: str, version: int, path: Path, loaded: ServedModel | None) -> ServedModel:
        """Return the model of a file: the one loaded before, if the file has not changed."""
        weights = loaded.step_model.weight_files if loaded is not None and loaded.path == path else []
        signature = files.file_signature(path, weights)
        if loaded is not None and loaded.file_signature == signature and loaded.path == path:
            return loaded
        step_model = self._load(path)
        if step_model.weight_files:
            signature = files.file_signature(path, step_model.weight_files)
        artifact = self.artifacts.copy(name, version, path, step_model, signature)
        model = ServedModel(name, version, step_model, path, signature, artifact)
        _warn_about_feedback(model)
        return model


def _warn_about_feedback(model: ServedModel) -> None:
    """Log a warning if the feedback rules in a model's manifest cannot be used; the model is served anyway."""
    if (problem := fault_of(model.manifest)) is not None:
        _log.warning(
            "Model %s/%d has unusable feedback rules; a rollout needs rules in its request: %s",
            model.name,
            model.version,
            problem,
        )
