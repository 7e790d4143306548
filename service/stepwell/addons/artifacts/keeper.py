"""`ArtifactKeeper`: stores the artifacts of the models that write records, and loads the models of other replicas."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from stepwell.addons.artifacts.packing import ArtifactError, copy_files, files_of, pack, seal, unpack, unseal
from stepwell.addons.artifacts.settings import ArtifactSettings
from stepwell.errors import ServiceError, StoreUnavailableError
from stepwell.models.artifacts import Artifact, Artifacts, LoadedArtifact, LoadModel
from stepwell.models.files import file_signature
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.step_model import StepModel

_log = logging.getLogger(__name__)
_RETRY_S: Final = 5.0  # after an artifact could not be stored
_CHECK_TIMEOUT_S: Final = 60.0


class ArtifactBackend(Protocol):
    """Where artifacts are kept; one that is not renewed expires.

    Attributes:
        check_s: Seconds within which an artifact has to be renewed while records are written that name it.
    """

    check_s: float

    async def renew(self, name: str, fingerprint: bytes, *, deadline: float) -> bool:
        """Return whether an artifact is stored, and extend its life if it is."""

    async def put(self, name: str, fingerprint: bytes, artifact: bytes) -> None:
        """Store an artifact; what is stored under the fingerprint is replaced."""

    async def get(self, name: str, fingerprint: bytes) -> bytes | None:
        """Return an artifact, None if there is none."""


class KeptArtifact(Artifact):
    """The artifact of one model that this worker has loaded, which is kept from the first record on."""

    def __init__(
        self,
        name: str,
        version: int,
        fingerprint: bytes,
        *,
        backend: ArtifactBackend,
        read: Callable[[], bytes],
    ) -> None:
        """Create it; nothing is stored yet.

        Args:
            name: Name of the model.
            version: Version of the model.
            fingerprint: Of the model.
            backend: Where it is kept.
            read: Returns the artifact.
        """
        super().__init__()
        self.check_at = -math.inf
        self._name = name
        self._version = version
        self._fingerprint = fingerprint
        self._backend = backend
        self._read = read
        self._is_stored = False
        self._retry_at = -math.inf
        self._problem = ""
        self._running: asyncio.Task[None] | None = None

    async def ensure(self, deadline: float) -> None:
        """Store the artifact unless it is stored; call it before a record that is the first one with its fingerprint.

        Args:
            deadline: On the running loop's clock.

        Raises:
            StoreUnavailableError: The store did not reply, or the artifact was not stored before the deadline.
        """
        if time.monotonic() < self._retry_at:
            return
        if self._running is None:
            self._start()
        assert self._running is not None
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(self._running)
        except TimeoutError:
            raise StoreUnavailableError(
                f"The artifact of model {self._name}/{self._version} was not stored before the deadline; nothing was "
                "applied."
            ) from None

    def check_soon(self) -> None:
        """Check in the background that the artifact is stored, and store it again if it is not."""
        self.check_at = time.monotonic() + self._backend.check_s
        if self._running is None:
            self._start()

    def _start(self) -> None:
        # Not with the deadline of the request that starts it: others with later ones wait for it, too.
        self._running = asyncio.create_task(self._check(asyncio.get_running_loop().time() + _CHECK_TIMEOUT_S))
        self._running.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running = None
        if not task.cancelled():
            task.exception()  # every request that waited may have been cancelled

    async def _check(self, deadline: float) -> None:
        label = f"model {self._name}/{self._version} ({self._fingerprint.hex()})"
        try:
            is_stored = await self._backend.renew(self._name, self._fingerprint, deadline=deadline)
        except ServiceError:
            self.check_at = -math.inf
            raise  # the store does not reply: readiness reports it, and nothing can be committed
        except OSError as exc:
            self._failed(label, exc)
            return
        if not is_stored:
            if self._is_stored:
                _log.error("The artifact of %s is no longer stored; it is stored again", label)
            try:
                artifact = await asyncio.to_thread(self._read)
                await self._backend.put(self._name, self._fingerprint, artifact)
            except (StepwellError, OSError) as exc:
                self._failed(label, exc)
                return
            _log.info("Stored the artifact of %s, %d bytes", label, len(artifact))
        self._is_stored, self._problem = True, ""
        self.check_at = time.monotonic() + self._backend.check_s

    def _failed(self, label: str, error: Exception) -> None:
        self._retry_at = self.check_at = time.monotonic() + _RETRY_S
        if str(error) != self._problem:
            self._problem = str(error)
            _log.error("The artifact of %s cannot be stored; it is served without: %s", label, error)


class ArtifactKeeper(Artifacts):
    """Copies the files of loaded models, so that they can be stored later, and loads models from artifacts."""

    def __init__(
        self,
        backend: ArtifactBackend | None,
        load: LoadModel,
        settings: ArtifactSettings,
        *,
        folder: Path | None = None,
    ) -> None:
        """Create the keeper.

        Args:
            backend: Where artifacts are kept; None: nowhere.
            load: Vets and loads a model file.
            settings: Which models are kept.
            folder: For the copies, shared by the workers of a service; None: a temporary one.
        """
        self.is_off = backend is None
        self._backend = backend
        self._load = load
        self._settings = settings
        self._temporary = None
        if backend is not None and folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="stepwell-artifacts-")
            folder = Path(self._temporary.name)
        self._folder = folder

    def copy(self, name: str, version: int, path: Path, model: StepModel, signature: tuple[int, ...]) -> Artifact:
        """Copy the files of a model, unless it is not to be kept. See `Artifacts`."""
        fingerprint = model.fingerprint
        reason = self._settings.not_kept_reason([path, *model.weight_files])
        if reason or self._folder is None or self._backend is None:
            return Artifact(reason)
        copies = self._folder / fingerprint.hex()
        try:
            if not copies.is_dir() and not self._copy(path, model, copies, signature):
                return Artifact("its files were overwritten while they were loaded; reload it again")
        except OSError as exc:
            _log.warning(
                "The files of model %s/%d cannot be copied to %s, so their artifact can be stored only while they are "
                "not overwritten: %s",
                name,
                version,
                self._folder,
                exc,
            )
            read = partial(_pack_unchanged, path, model.weight_files, version, signature)
            return KeptArtifact(name, version, fingerprint, backend=self._backend, read=read)
        return self._kept(name, version, fingerprint, copies)

    async def load(self, name: str, fingerprint: bytes) -> LoadedArtifact | None:
        """Return version, file and model of a fingerprint from its artifact; None if there is none.

        Raises:
            ArtifactError: It is not what was stored, or is of another model.
            ModelLoadError: The file was refused, as one of a models folder would be.
            StoreUnavailableError: The store did not reply.
            OSError: It cannot be read or written here.
        """
        if self._backend is None or self._folder is None:
            return None
        artifact = await self._backend.get(name, fingerprint)
        return None if artifact is None else await asyncio.to_thread(self._unpack, name, fingerprint, artifact)

    def kept_file(self, name: str, version: int, fingerprint: bytes, content: bytes) -> Artifact:
        """Return the artifact of one file that stands beside a model; nothing is stored yet. See `Artifacts`."""
        if self._backend is None or len(content) > self._settings.artifact_max_bytes:
            return Artifact("`artifacts` is off, or the file is too large")
        return KeptArtifact(name, version, fingerprint, backend=self._backend, read=partial(seal, content))

    async def put_file(self, name: str, fingerprint: bytes, content: bytes) -> None:
        """Store one file that stands beside a model, in place of what is stored; a larger one is not kept.

        Raises:
            StoreUnavailableError: The store did not reply.
            OSError: It cannot be written.
        """
        if self._backend is not None and len(content) <= self._settings.artifact_max_bytes:
            await self._backend.put(name, fingerprint, seal(content))

    async def read_file(self, name: str, fingerprint: bytes) -> bytes | None:
        """Return the content of a file that `put_file` stored; None: there is none.

        Raises:
            ArtifactError: It is not what was stored.
            StoreUnavailableError: The store did not reply.
            OSError: It cannot be read.
        """
        artifact = None if self._backend is None else await self._backend.get(name, fingerprint)
        return None if artifact is None else bytes(unseal(artifact))

    def close(self) -> None:
        """Delete the copies, if their folder is a temporary one."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def _unpack(self, name: str, fingerprint: bytes, artifact: bytes) -> LoadedArtifact:
        assert self._folder is not None
        copies = self._folder / fingerprint.hex()
        with _new_folder(self._folder) as new:
            unpacked = unpack(artifact, new)
            model = self._load(unpacked.path)
            if model.fingerprint != fingerprint:
                raise ArtifactError(
                    f"Its model has the fingerprint {model.fingerprint.hex()}; expected {fingerprint.hex()}.",
                    fix="Delete it, and let a replica that has the model's file store it again.",
                )
            _move(new, copies)
        kept = self._kept(name, unpacked.version, fingerprint, copies)
        return LoadedArtifact(unpacked.version, copies / unpacked.path.name, model, kept)

    def _copy(self, path: Path, model: StepModel, copies: Path, signature: tuple[int, ...]) -> bool:
        """Copy a model's files; False: they are not those that were loaded any more."""
        assert self._folder is not None
        with _new_folder(self._folder) as new:
            copy_files(files_of(path, model.weight_files), new)
            if file_signature(path, model.weight_files) != signature:
                return False
            _move(new, copies)
            return True

    def _kept(self, name: str, version: int, fingerprint: bytes, copies: Path) -> KeptArtifact:
        assert self._backend is not None
        read = partial(_pack_copies, copies, version)
        return KeptArtifact(name, version, fingerprint, backend=self._backend, read=read)


def _pack_unchanged(path: Path, weights: list[Path], version: int, signature: tuple[int, ...]) -> bytes:
    """Return the artifact of a model from its own files.

    Raises:
        OSError: They are not those that were loaded any more.
    """
    artifact = pack(files_of(path, weights), version)
    if file_signature(path, weights) != signature:
        raise OSError("its files were overwritten since they were loaded")
    return artifact


def _pack_copies(folder: Path, version: int) -> bytes:
    return pack({file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}, version)


@contextlib.contextmanager
def _new_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder, and delete it after the block unless it was renamed."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, target: Path) -> None:
    """Rename a folder, unless another worker has created the target."""
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise
