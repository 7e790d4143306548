"""Exports published models, one for each line of JSON that it reads, and prints the verdict as a line of JSON."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import linecache
import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from campaign.published.models import Published

LONGEST_S = 90
"""What takes longer is counted as a fault."""


class _TooSlowError(BaseException):
    """The export takes too long; nothing catches it but this module."""


def _stop(*_: Any) -> None:
    raise _TooSlowError


def _imported(source: str) -> dict[str, Any]:
    """Return the names of a module with this source, from a file: the exporter reads the lines of what it exports."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "given.py"
        file.write_text(source)
        linecache.getlines(str(file))
        return runpy.run_path(str(file))


def verdict(model: Published) -> dict[str, Any]:
    """Return what becomes of a model: `steps`, `refused` with the reason, or why it was not tried."""
    import torch

    from stepwell_export import StepSpec
    from stepwell_export.converted import verify_model
    from stepwell_export.runtime.errors import ParityError, StepwellError
    from stepwell_export.torch import convert

    try:
        version = importlib.metadata.version(model.package)
    except importlib.metadata.PackageNotFoundError:
        return {"verdict": "not installed", "why": "", "version": ""}
    torch.manual_seed(0)
    try:
        module = eval(model.code, _imported(model.imports))
        value = torch.randint(model.ids, model.shape) if model.ids else torch.randn(model.shape)
        spec = StepSpec(module, inputs={"x": value}, time_axis=model.time_axis, length=model.length)
    except Exception as exc:  # noqa: BLE001  # the package's own: it cannot be imported, or takes other arguments
        return {"verdict": "not installed", "why": f"{type(exc).__name__}: {exc}", "version": version}
    begun = time.process_time()  # of this process alone, whatever else the machine does
    signal.alarm(LONGEST_S)
    try:
        _, report = verify_model(convert(spec, name="published"), long_steps=200)
    except _TooSlowError:
        made = {"verdict": "too slow", "why": f"longer than {LONGEST_S} s"}
    except ParityError as exc:
        is_original = "the original gives nan" in exc.problem  # on such random numbers
        made = {"verdict": "refused" if is_original else "differs", "why": exc.problem}
    except StepwellError as exc:
        made = {"verdict": "refused", "why": exc.problem}
    except Exception as exc:  # noqa: BLE001  # whatever it is, it is a fault of the exporter
        made = {"verdict": "failed", "why": f"{type(exc).__name__}: {exc}"}
    else:
        made = {"verdict": "steps", "why": f"within {report.parity.max_abs:.0e}"}
    finally:
        signal.alarm(0)
    return {**made, "version": version, "seconds": time.process_time() - begun}


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "jax")
    signal.signal(signal.SIGALRM, _stop)
    for line in sys.stdin:
        given = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            found = verdict(Published(**given | {"shape": tuple(given["shape"])}))
        sys.stdout.write(json.dumps({"seconds": 0.0} | found) + "\n")
        sys.stdout.flush()
