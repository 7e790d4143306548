"""`ModelVetting`: lets a model file into the service once a process of its own has loaded and probed it, within bounds."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import onnxruntime

from model_export.contents import demand_harmless, weight_files
from model_export.errors import ModelLoadError, StepwellError
from model_export.manifest import sidecar_of
from model_export.step_model import StepModel

if TYPE_CHECKING:
    from service.settings import Settings

_FORMAT: Final = "2"  # of a verdict; another one when more is looked at
_CPU: Final = ["CPUExecutionProvider"]


class ModelVetting:
    """Loads model files that were found harmless.

    A verdict is remembered by all that it depends on (the files' bytes among it), so that only the first start with a
    model pays for the process: about 0.3 s.
    """

    def __init__(self, settings: Settings, folder: Path | None) -> None:
        """Prepare.

        Args:
            settings: Threads, providers, and the bounds.
            folder: Where good verdicts are remembered; None: nowhere.
        """
        self._threads = settings.ort_threads
        self._providers = settings.execution_providers
        self._seconds = settings.model_probe_s
        self._memory = settings.model_memory_bytes
        self._folder = folder
        self._rejected: dict[str, StepwellError] = {}  # bad verdicts, for as long as this process lives

    def load(self, path: Path) -> StepModel:
        """Return the model of a file.

        Raises:
            ModelLoadError: It has operators or files that are not taken, cannot be loaded, or not within the bounds.
            ManifestError: Its manifest is missing or wrong.
        """
        if self._seconds:
            self._check_vetted(path)
        return StepModel(path, threads=self._threads, providers=self._providers)

    # ---------------------------------------------------------------- helpers

    def _check_vetted(self, path: Path) -> None:
        files = [path, *weight_files(path, demand_harmless(path))]
        if sidecar_of(path).is_file():
            files.append(sidecar_of(path))
        if (size := sum(file.stat().st_size for file in files)) > self._memory:
            raise ModelLoadError(
                f"{path.name} has {size} bytes with its weights; at most {self._memory} are taken.",
                fix="Raise `model_memory_bytes`.",
            )
        verdict = self._name_of_verdict(files)
        if verdict in self._rejected:
            raise self._rejected[verdict]
        with self._probe_lock() as folder:
            if folder is not None and (folder / verdict).exists():
                return
            try:
                self._probe(path)
            except StepwellError as exc:
                self._rejected[verdict] = exc
                raise
            if folder is not None:
                (folder / verdict).touch()

    def _name_of_verdict(self, files: list[Path]) -> str:
        digest = hashlib.blake2b(digest_size=16)
        terms = [_FORMAT, onnxruntime.__version__, str(self._threads), str(self._memory), *self._providers]
        digest.update(json.dumps(terms).encode())
        for file in files:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "blake2b").digest())
        return digest.hexdigest()

    @contextlib.contextmanager
    def _probe_lock(self) -> Iterator[Path | None]:
        """Give the folder of verdicts; workers that start together wait for the first one's."""
        lock = None
        if self._folder is not None:
            with contextlib.suppress(OSError):  # a folder that cannot be written: each process looks for itself
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = (self._folder / "lock").open("w")
        if lock is None:
            yield None
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._folder

    def _probe(self, path: Path) -> None:
        """Load and probe it in a process of its own.

        Raises:
            ModelLoadError: That was refused, failed, or took more than it may.
        """
        memory = self._memory if self._providers == _CPU else 0  # devices map more than there is
        command = [sys.executable, "-P", "-m", "service.models.probe", str(path), str(self._seconds), str(memory)]
        command += [str(self._threads), *self._providers]
        env = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
        try:
            done = subprocess.run(  # noqa: S603 - our own program
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=self._seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ModelLoadError(
                f"{path.name} was not loaded and run once within {self._seconds:g} s.",
                fix="Make the model smaller, or raise `model_probe_s`.",
            ) from None
        try:
            found = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            raise ModelLoadError(
                f"{path.name} ended the process that tried it: {_how_it_ended(done.returncode)}.",
                fix="Export the model again, or raise `model_memory_bytes` if it is as large as that.",
            ) from None
        if found:
            raise ModelLoadError(found["problem"], fix=found["fix"])


def _how_it_ended(code: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"
