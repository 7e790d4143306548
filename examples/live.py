"""Serves models as long as a block lasts; shared by the examples."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np

import stepwell

if TYPE_CHECKING:
    import keras

ATOL = 1e-5
"""Largest difference from the original that an example lets pass."""

_LOOK_EVERY_S = 0.05
_LOOKS = 1200


@contextlib.contextmanager
def live(
    model: keras.Model | stepwell.StepSpec | stepwell.Pipeline,
    name: str = "",
    *,
    feedback: Mapping[str, Any] | None = None,
) -> Iterator[httpx2.Client]:
    """Export a model to a verified step graph, and serve it with an embedded store.

    All files are in a temporary folder, which is deleted after the block. The equivalent commands:

        stepwell export NAME.keras -o models/NAME.onnx       # or package.module:callable
        stepwell serve --models models

    Args:
        model: A trained Keras model, a PyTorch module with example inputs, or a pipeline.
        name: Name of the served model; by default the name of the Keras model.
        feedback: For rollouts, which output feeds which input; on the command line `--feedback OUTPUT=INPUT`.

    Yields:
        A client whose base URL is that of the service. An error of the service ends the example with its message.
    """
    with tempfile.TemporaryDirectory(prefix="stepwell-") as folder:
        root = Path(folder)
        (root / "models").mkdir()
        if isinstance(model, stepwell.StepSpec | stepwell.Pipeline):
            stepwell.export(model, root / "models" / f"{name}.onnx", feedback=feedback)
        else:  # through a file, as most users would
            model.save(root / f"{model.name}.keras")
            source, target = root / f"{model.name}.keras", root / "models" / f"{model.name}.onnx"
            stepwell.export(source, target, feedback=feedback)
        with serving(root) as http:
            yield http


@contextlib.contextmanager
def serving(root: Path) -> Iterator[httpx2.Client]:
    """Serve the models of a folder, `root/models`, until the block ends; yields a client as `live` does."""
    hooks = {"response": [_check_status]}
    with _served(root) as url, httpx2.Client(base_url=url, event_hooks=hooks, timeout=30, trust_env=False) as http:
        yield http


def compare(served: object, expected: np.ndarray, original: str = "Keras") -> None:
    """Print how far the service's predictions differ from the original's; exits with 1 if the difference is too large.

    Args:
        served: Predictions of the service, of the same shape.
        expected: Predictions of the original for whole sequences, float32.
        original: Name of its framework.
    """
    got = np.asarray(served, np.float32)
    if got.shape != expected.shape:
        sys.exit(f"the service answered shape {got.shape}; expected {expected.shape}")
    difference = float(np.abs(got - expected).max())
    print(f"largest difference from {original}: {difference:.1e} ({got.size:,} numbers)")
    if not difference <= ATOL:  # also fails for NaN
        sys.exit(f"expected at most {ATOL:g}")


@contextlib.contextmanager
def _served(root: Path) -> Iterator[str]:
    """Run `stepwell serve` until the block ends; yields its URL once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "stepwell", "serve", "--port", str(port), "--models", str(root / "models")]
    command += ["--data-dir", str(root / "data"), "--drain-s", "0"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
    log = root / "serve.log"
    with log.open("wb") as out:
        service = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_ready(url, service, log)
        yield url
    finally:
        service.terminate()
        service.wait()


def _wait_ready(url: str, service: subprocess.Popen[bytes], log: Path) -> None:
    with httpx2.Client(base_url=url, trust_env=False) as http:
        for _ in range(_LOOKS):
            with contextlib.suppress(httpx2.TransportError):
                if http.get("/readyz").is_success:
                    return
            with contextlib.suppress(subprocess.TimeoutExpired):
                service.wait(_LOOK_EVERY_S)
                break
    sys.exit(f"the service did not start:\n{log.read_text()}")


def _check_status(answer: httpx2.Response) -> None:
    if not answer.is_success:
        answer.read()
        sys.exit(f"{answer.request.method} {answer.request.url.path} was answered {answer.status_code}: {answer.text}")
