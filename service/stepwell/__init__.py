"""Stepwell's public names: export recurrent models, serve them, and step streams by a client.

Each name is imported when it is first used: `import stepwell` loads no framework, no web server and no onnxruntime.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwell import extend, testing
    from stepwell.addons import mlflow
    from stepwell.addons.event_time.resample import resample
    from stepwell.addons.local import LocalModel, LocalStream
    from stepwell.addons.notebook import LiveModel, run
    from stepwell_client import (
        AsyncClient,
        Client,
        ClientError,
        Event,
        Gap,
        PackedState,
        Rollout,
        RolloutTimestep,
        RunResult,
        Snapshot,
        State,
        Status,
        StepResult,
    )
    from stepwell_export import (
        Adopted,
        Exported,
        Manifest,
        Part,
        Pipeline,
        StepModel,
        StepSpec,
        StepwellError,
        adopt,
        convert_onnx,
        export,
        register_step_rule,
        stages,
        torch,
        verify_model,
    )

    __version__: str
    """The version of the package."""

# onnxruntime's own builds report their use to Microsoft unless this is set before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Adopted",
    "AsyncClient",
    "Client",
    "ClientError",
    "Event",
    "Exported",
    "Gap",
    "LiveModel",
    "LocalModel",
    "LocalStream",
    "Manifest",
    "PackedState",
    "Part",
    "Pipeline",
    "Rollout",
    "RolloutTimestep",
    "RunResult",
    "Snapshot",
    "State",
    "Status",
    "StepModel",
    "StepResult",
    "StepSpec",
    "StepwellError",
    "__version__",
    "adopt",
    "convert_onnx",
    "export",
    "extend",
    "mlflow",
    "register_step_rule",
    "resample",
    "run",
    "stages",
    "testing",
    "torch",
    "verify_model",
]

_HOMES = {
    **dict.fromkeys(("AsyncClient", "Client", "ClientError", "Event", "Gap", "Rollout"), "stepwell_client"),
    **dict.fromkeys(("PackedState", "RolloutTimestep", "RunResult"), "stepwell_client"),
    **dict.fromkeys(("Snapshot", "State", "Status", "StepResult"), "stepwell_client"),
    **dict.fromkeys(("Adopted", "Exported", "Manifest", "Part", "Pipeline", "StepModel"), "stepwell_export"),
    **dict.fromkeys(("StepSpec", "StepwellError", "adopt", "convert_onnx", "export"), "stepwell_export"),
    **dict.fromkeys(("register_step_rule", "stages", "torch", "verify_model"), "stepwell_export"),
    "LiveModel": "stepwell.addons.notebook",
    **dict.fromkeys(("LocalModel", "LocalStream"), "stepwell.addons.local"),
    "resample": "stepwell.addons.event_time.resample",
    "run": "stepwell.addons.notebook",
}
"""The package that gives each name."""

_MODULES = {
    "extend": "stepwell.extend",
    "mlflow": "stepwell.addons.mlflow",
    "ray": "stepwell.addons.offline.ray",
    "spark": "stepwell.addons.offline.spark",
    "testing": "stepwell.testing",
}


if not TYPE_CHECKING:  # else a type checker would accept every name

    def __getattr__(name: str) -> Any:
        """Import what is used when it is used."""
        if name == "__version__":
            from importlib.metadata import version  # takes longer than all else here

            found: Any = version("stepwell")
        elif name in _MODULES:
            found = importlib.import_module(_MODULES[name])
        elif name in _HOMES:
            found = getattr(importlib.import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def main() -> None:
    """Run the `stepwell` program."""
    from stepwell.commands.interrupted import loading

    with loading():
        from stepwell.commands.cli import main as run
    run()
