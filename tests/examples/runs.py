"""Runs scripts of examples/ as users do: in a separate process, from any folder."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.programs.start import WarmProcess, is_forking

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
_TIMEOUT_S = 150
_IMPORTED = ("keras", "httpx2", "onnx", "onnxruntime", "stepwell", "model_export.export", "model_export.keras")
"""What the examples of Keras models spend a third of their processor time on."""


def run_python(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with arguments in a folder, with no STEPWELL_ variables but the given ones."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=_env() | variables,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )


class ForkedExamples:
    """Runs examples of Keras models in processes that are forked from one which has imported Keras and the exporter."""

    def __init__(self, warm: WarmProcess) -> None:
        self._warm = warm

    def run(self, script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a script in a folder, as `run_python` does.

        Raises:
            CannotForkError: The process has ended, for example because a library starts threads when it is imported.
        """
        words = [script, *arguments]
        with Path(os.devnull).open("rb") as nothing, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            streams = (nothing, out, err)
            one = self._warm.fork(words, env=_env(), streams=streams, folder=folder, path=[Path(script).parent])
            try:
                code = one.wait(_TIMEOUT_S)
            finally:
                one.kill()
            printed = [(stream.seek(0), stream.read().decode())[1] for stream in (out, err)]
        return subprocess.CompletedProcess(words, code, *printed)


@contextlib.contextmanager
def forked_examples() -> Iterator[ForkedExamples | None]:
    """Run examples by forking until the block ends; yields None where nothing is forked."""
    if not is_forking():
        yield None
        return
    with contextlib.closing(WarmProcess("", _IMPORTED, _env())) as warm:
        yield ForkedExamples(warm)


def _env() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
    # Examples train, which takes longer than compiling with optimizations.
    return env | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
