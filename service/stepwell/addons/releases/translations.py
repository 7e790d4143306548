"""`Translations`: the graphs that compute the states of a version from those of an older one."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import onnxruntime as ort

from stepwell.engine.model_runs import ModelRuns
from stepwell_export.runtime.errors import ModelLoadError, StepwellError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.session import open_session
from stepwell_export.runtime.state_packing import TensorLayout, from_graph, to_graph
from stepwell_export.runtime.step_model import StepModel

if TYPE_CHECKING:
    from stepwell.models.artifacts import Artifact, Artifacts
    from stepwell.models.served import ServedModel


_MAX_LOADED: Final = 64


class TranslationError(StepwellError):
    """A translation fails on the states of a stream, or computes NaN or infinity."""

    code = "translation_failed"


class Translation:
    """The graph that computes a version's states from those of an older version.

    Its inputs are named as the old states, its outputs as the new ones, or as their state outputs (ADR 0015); each has
    the shape and the batch axis that it has in the step graph.
    """

    def __init__(self, source: Path | bytes, old: StepModel, new: StepModel, *, where: str = "the translation") -> None:
        """Open and check the graph.

        Args:
            source: The ONNX file, or its bytes.
            old: The version whose states it translates.
            new: The version whose states it computes.
            where: What it is, for messages.

        Raises:
            ModelLoadError: It cannot be opened, or its inputs or outputs are not these states.
        """
        self._session = open_session(source, where=where, threads=1, providers=("CPUExecutionProvider",))
        inputs = {tensor.name for tensor in self._session.get_inputs()}
        outputs = {tensor.name for tensor in self._session.get_outputs()}
        ours, theirs = {field.name for field in old.fields}, {field.name for field in new.fields}
        next_of = {
            spec.input: spec.output for spec in new.manifest.states
        }  # a graph computes no tensor of an input's name
        self._names = [p.name if p.name in outputs else next_of.get(p.name, "") for p in _layouts(new)]
        if not inputs <= ours or not outputs.issuperset(self._names):
            raise ModelLoadError(
                f"The translation has the inputs {sorted(inputs)} and the outputs {sorted(outputs)}; expected inputs "
                f"of {sorted(ours)}, and the outputs {sorted(theirs)}.",
                fix="Name its inputs as the states of the old version, and its outputs as those of the new one.",
            )
        self._inputs = [layout for layout in _layouts(old) if layout.name in inputs]
        self._outputs = _layouts(new)
        self._running: dict[int, tuple[ort.RunOptions, float]] = {}

    def __call__(self, states: Mapping[str, Array]) -> dict[str, Array]:
        """Return the new states, `(1, *row)` by name, of one stream's old states.

        Raises:
            TranslationError: The graph fails on them, or computes NaN or infinity.
        """
        feeds = {place.name: to_graph(states[place.name], place.graph_row, place.batch_axis) for place in self._inputs}
        switch, thread = ort.RunOptions(), threading.get_ident()
        self._running[thread] = switch, time.monotonic()
        try:
            values = self._session.run(self._names, feeds, switch)
            translated = {p.name: from_graph(value, p, 1) for p, value in zip(self._outputs, values, strict=True)}
        except Exception as exc:
            raise TranslationError(f"The translation of a state failed: {str(exc).strip()[:200]}") from exc
        finally:
            del self._running[thread]
        for name, array in translated.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise TranslationError(f"The translation computed NaN or infinity in the state {name!r}.")
        return translated

    def terminate(self, *, longer_than: float = 0.0) -> None:
        """End runs in other threads that take longer than so many seconds."""
        now = time.monotonic()
        for switch, began in list(self._running.values()):
            if now - began >= longer_than:
                switch.terminate = True


class _Loaded(NamedTuple):
    translation: Translation
    artifact: Artifact | None


class Translations(ModelRuns):
    """The translations that are loaded here, each identified by the digest of its file.

    A release names the digest of the one that was beside the new version where the release was started, and all
    replicas use this one: its artifact, or their own file if that is the same.

    Args:
        artifacts: Keeps them for other replicas; None: they are not kept.
    """

    def __init__(self, artifacts: Artifacts | None) -> None:
        self._artifacts = artifacts
        self._loaded: dict[tuple[bytes, bytes, bytes], _Loaded] = {}

    @property
    def running(self) -> list[Translation]:
        """The translations that are loaded."""
        return [loaded.translation for loaded in self._loaded.values()]

    def get(self, old: ServedModel, new: ServedModel, digest: bytes | None) -> Translation | None:
        """Return the translation between two versions that is loaded, else the file beside the new version.

        Args:
            old: The older version.
            new: The newer version.
            digest: Digest of its file, 8 bytes; None: that of the file.

        Returns:
            None: There is none with this digest here.

        Raises:
            ModelLoadError: The file is not a translation between them.
        """
        if digest is not None and (loaded := self._loaded.get((old.fingerprint, new.fingerprint, digest))) is not None:
            return loaded.translation
        content = _file_content(old, new)
        if content is None or digest not in {None, _digest(content)}:
            return None
        return self._open(old, new, content).translation

    async def publish(self, old: ServedModel, new: ServedModel) -> bytes | None:
        """Store the file beside the new version for all replicas, which use it once a release names it.

        Returns:
            The digest of the file, 8 bytes; None: there is no file.

        Raises:
            ModelLoadError: The file is not a translation between them.
            ServiceError: The store did not reply.
            OSError: It cannot be read or stored.
        """
        content = await asyncio.to_thread(_file_content, old, new)
        if content is None:
            return None
        await asyncio.to_thread(self._open, old, new, content)
        if self._artifacts is not None:
            await self._artifacts.put_file(new.name, _digest(content), content)
        return _digest(content)

    async def load(self, old: ServedModel, new: ServedModel, digest: bytes) -> Translation | None:
        """Return the translation that a release names, from its artifact if it is not loaded; renews the artifact.

        Args:
            old: The older version.
            new: The newer version.
            digest: Digest of its file, 8 bytes.

        Returns:
            None: There is neither its artifact nor the same file.

        Raises:
            ModelLoadError: It is not a translation between them.
            ArtifactError: The artifact was cut or changed.
            ServiceError: The store did not reply.
            OSError: It cannot be read.
        """
        if (loaded := self._loaded.get((old.fingerprint, new.fingerprint, digest))) is not None:
            if loaded.artifact is not None and time.monotonic() >= loaded.artifact.check_at:
                loaded.artifact.check_soon()
            return loaded.translation
        content = None
        if self._artifacts is not None:
            content = await self._artifacts.read_file(new.name, digest)
        if content is None:
            return await asyncio.to_thread(self.get, old, new, digest)
        return (await asyncio.to_thread(self._open, old, new, content)).translation

    def _open(self, old: ServedModel, new: ServedModel, content: bytes) -> _Loaded:
        digest = _digest(content)
        key = old.fingerprint, new.fingerprint, digest
        if (loaded := self._loaded.get(key)) is not None:
            return loaded
        assert isinstance(old.step_model, StepModel)
        assert isinstance(new.step_model, StepModel)
        where = f"the translation from version {old.version} to {new.version} of {new.name}"
        translation = Translation(content, old.step_model, new.step_model, where=where)
        artifact = None
        if self._artifacts is not None:
            artifact = self._artifacts.kept_file(new.name, new.version, digest, content)
        loaded = self._loaded[key] = _Loaded(translation, artifact)
        while len(self._loaded) > _MAX_LOADED:
            del self._loaded[next(iter(self._loaded))]
        return loaded


def _file_content(old: ServedModel, new: ServedModel) -> bytes | None:
    file = translation_file(new, old.version)
    return file.read_bytes() if file.is_file() else None


def translation_file(new: ServedModel, old_version: int) -> Path:
    """Return the file that translates the states of an older version to those of a new one; it may be missing."""
    return new.path.parent / f"translate-from-{old_version}.onnx"


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(b"translation\0" + content, digest_size=8).digest()


def _layouts(model: StepModel) -> list[TensorLayout]:
    """Return how a step graph has its states; a window's past part has the batch on axis 0."""
    axes = {state.input: state.batch_axis for state in model.manifest.states}
    return [TensorLayout(field.name, field.shape, field.shape, axes.get(field.name, 0)) for field in model.fields]
