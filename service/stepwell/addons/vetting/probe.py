"""Loads and probes one model in this process, within limits, and prints the result as one line of JSON.

`ModelVetting` runs it as a separate process: a file that crashes onnxruntime, uses too much memory or never finishes
can only end this process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from stepwell.garbage_collection import collector_paused

with collector_paused():
    from stepwell_export.runtime.errors import StepwellError
    from stepwell_export.runtime.step_model import StepModel


def main(path: str, seconds: str, memory: str, threads: str, *providers: str) -> None:
    """Load and probe a model.

    Args:
        path: The model file.
        seconds: Allowed CPU time of each thread.
        memory: Allowed address space in bytes, beyond what this process has mapped already; 0: no limit.
        threads: As for `StepModel`.
        providers: As for `StepModel`.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = (int(float(seconds)) + 1) * int(threads)  # in case the parent process has ended, and its timeout with it
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    if int(memory) and (used := _address_space()):
        resource.setrlimit(resource.RLIMIT_AS, (used + int(memory), used + int(memory)))
    found: dict[str, str] = {}
    try:
        StepModel(Path(path), threads=int(threads), providers=providers)
    except StepwellError as exc:
        found = {"problem": exc.problem, "fix": exc.fix}
    except MemoryError:
        found = {"problem": "It takes more memory than it may.", "fix": "Make the model smaller."}
    except Exception as exc:  # noqa: BLE001 - whatever it is, the file is not served
        found = {"problem": f"Loading it failed: {type(exc).__name__}.", "fix": "Export the model again."}
    print(json.dumps(found), flush=True)  # noqa: T201 - read by the parent process


def _address_space() -> int:
    """Return how many bytes this process has mapped; 0 if the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # all is written; taking the modules apart would cost a sixth more
