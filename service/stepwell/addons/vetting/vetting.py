"""`ModelVetting`: refuses a model file unless a separate process has loaded and probed it within limits."""

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

from stepwell_export.runtime.errors import ModelLoadError, StepwellError
from stepwell_export.runtime.manifest import sidecar_of
from stepwell_export.runtime.operator_scan import check_operators, weight_files

if TYPE_CHECKING:
    from stepwell.settings import Settings

_FORMAT: Final = "3"  # of a verdict; another one when more is looked at
_CPU: Final = ["CPUExecutionProvider"]
_MEMORY_BYTES: Final = 4 * 2**30
_MEMORY_FACTOR: Final = 4  # of the bytes of the file with its weights, if that is more


class ModelVetting:
    """Checks model files before they are loaded.

    Verdicts are stored under a hash of all that they depend on, including the files' bytes. So only the first start
    with a model needs the separate process, which costs about 0.3 s.
    """

    def __init__(self, settings: Settings, seconds: float, folder: Path | None) -> None:
        """Create a vetting.

        Args:
            settings: Threads and providers.
            seconds: Limit of the time that a file takes.
            folder: Folder in which the verdicts of accepted files are stored; None: they are not stored.
        """
        self._threads = settings.ort_threads
        self._providers = settings.execution_providers
        self._seconds = seconds
        self._folder = folder
        self._rejected: dict[str, StepwellError] = {}  # verdicts of refused files, in this process only

    def check(self, path: Path) -> None:
        """Refuse a file that does not pass.

        Raises:
            ModelLoadError: The file has operators or external files that are not allowed, cannot be loaded, or exceeds
                the limits.
            ManifestError: Its manifest is missing or not valid.
        """
        files = [path, *weight_files(path, check_operators(path))]
        if sidecar_of(path).is_file():
            files.append(sidecar_of(path))
        verdict = self._verdict_name(files)
        if verdict in self._rejected:
            raise self._rejected[verdict]
        with self._probe_lock() as folder:
            if folder is not None and (folder / verdict).exists():
                return
            try:
                self._probe(path, max(_MEMORY_BYTES, _MEMORY_FACTOR * sum(file.stat().st_size for file in files)))
            except StepwellError as exc:
                self._rejected[verdict] = exc
                raise
            if folder is not None:
                (folder / verdict).touch()

    # ---------------------------------------------------------------- helpers

    def _verdict_name(self, files: list[Path]) -> str:
        digest = hashlib.blake2b(digest_size=16)
        terms = [_FORMAT, onnxruntime.__version__, str(self._threads), *self._providers]
        digest.update(json.dumps(terms).encode())
        for file in files:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "blake2b").digest())
        return digest.hexdigest()

    @contextlib.contextmanager
    def _probe_lock(self) -> Iterator[Path | None]:
        """Lock and yield the folder of verdicts: of workers that start together, one probes and the others wait."""
        lock = None
        if self._folder is not None:
            with contextlib.suppress(OSError):  # the folder is not writable: each process probes for itself
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = (self._folder / "lock").open("w")
        if lock is None:
            yield None
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._folder

    def _probe(self, path: Path, memory: int) -> None:
        """Load and probe a model in a separate process, which may use so many bytes of memory.

        Raises:
            ModelLoadError: The model was refused, loading failed, or it exceeded the limits.
        """
        if self._providers != _CPU:
            memory = 0  # no limit: drivers of devices map more address space than memory
        command = [sys.executable, "-P", "-m", "stepwell.addons.vetting.probe", str(path), str(self._seconds)]
        command += [str(memory), str(self._threads), *self._providers]
        env = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
        try:
            process = subprocess.run(  # noqa: S603 - the command is our own module
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=self._seconds,
                check=False,
                start_new_session=True,  # Ctrl-C stops the service, and is no fault of the model
            )
        except subprocess.TimeoutExpired:
            raise ModelLoadError(
                f"{path.name} was not loaded and run once within {self._seconds:g} s.",
                fix="Make the model smaller, or raise `model_probe_s`.",
            ) from None
        try:
            problem = json.loads(process.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            raise ModelLoadError(
                f"{path.name} crashed the process that loaded it: {_exit_reason(process.returncode)}.",
                fix="Export the model again. It may take 4 GiB of memory, or four times its size with its weights.",
            ) from None
        if problem:
            raise ModelLoadError(problem["problem"], fix=problem["fix"])


def _exit_reason(code: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"
