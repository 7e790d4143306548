"""Stepwell's public names: export recurrent models, serve them, and step streams by a client.

Each name is imported when it is first used: `import stepwell` loads no framework, no web server and no onnxruntime.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwell_export import stages, torch
    from stepwell_export.adoption.adopt_file import Adopted
    from stepwell_export.adoption.adopt_file import adopt_file as adopt
    from stepwell_export.converted import verify_model
    from stepwell_export.runtime.errors import StepwellError
    from stepwell_export.exporter import Exported
    from stepwell_export.exporter import export_source as export
    from stepwell_export.keras import Call, Value, register_step_rule, to_step_model
    from stepwell_export.runtime.manifest import Manifest
    from stepwell_export.spec import StepSpec
    from stepwell_export.stages import Pipeline
    from stepwell_export.runtime.step_model import StepModel
    from stepwell_export.streaming import convert as convert_onnx
    from stepwell import extend, testing
    from stepwell.addons import mlflow
    from stepwell_client import (
        AsyncClient,
        Client,
        ClientError,
        Event,
        Gap,
        Rollout,
        Snapshot,
        State,
        Status,
        StepResult,
    )
    from stepwell.addons.notebook import LiveModel, run

    __version__: str
    """The version of the package."""

# onnxruntime's own builds report their use to Microsoft unless this is set before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Adopted",
    "AsyncClient",
    "Call",
    "Client",
    "ClientError",
    "Event",
    "Exported",
    "Gap",
    "LiveModel",
    "Manifest",
    "Pipeline",
    "Rollout",
    "Snapshot",
    "State",
    "Status",
    "StepModel",
    "StepResult",
    "StepSpec",
    "StepwellError",
    "Value",
    "__version__",
    "adopt",
    "convert_onnx",
    "export",
    "extend",
    "mlflow",
    "register_step_rule",
    "run",
    "stages",
    "testing",
    "to_step_model",
    "torch",
    "verify_model",
]

_HOMES = {
    **dict.fromkeys(("AsyncClient", "Client", "ClientError", "Event", "Gap", "Rollout"), "stepwell_client"),
    **dict.fromkeys(("Snapshot", "State", "Status", "StepResult"), "stepwell_client"),
    **dict.fromkeys(("Call", "Value", "register_step_rule", "to_step_model"), "stepwell_export.keras"),
    "Adopted": "stepwell_export.adoption.adopt_file",
    "Exported": "stepwell_export.exporter",
    "Manifest": "stepwell_export.runtime.manifest",
    "Pipeline": "stepwell_export.stages",
    "StepModel": "stepwell_export.runtime.step_model",
    "StepSpec": "stepwell_export.spec",
    "StepwellError": "stepwell_export.runtime.errors",
    "adopt": "stepwell_export.adoption.adopt_file",
    "convert_onnx": "stepwell_export.streaming",
    "export": "stepwell_export.exporter",
    # What pyproject.toml registers.
    **dict.fromkeys(("AMQP", "AMQPS", "FILE", "KAFKA", "KAFKAS"), "stepwell.addons.connect.brokers"),
    **dict.fromkeys(("MQTT", "MQTTS", "NATS", "REDIS", "REDISS"), "stepwell.addons.connect.brokers"),
    "GrpcAddon": "stepwell.addons.grpc_api.addon",
    "LiveModel": "stepwell.addons.notebook",
    "run": "stepwell.addons.notebook",
    "verify_model": "stepwell_export.converted",
}
"""The module of each name."""

_NAMES_THERE = {"adopt": "adopt_file", "convert_onnx": "convert", "export": "export_source"}
"""What a name is called in its module, where that is something else."""

_MODULES = {
    "extend": "stepwell.extend",
    "mlflow": "stepwell.addons.mlflow",
    "mlflow_deployments": "stepwell.addons.mlflow.deployments",  # for the entry point by which MLflow finds it
    "ray": "stepwell.addons.offline.ray",
    "spark": "stepwell.addons.offline.spark",
    "stages": "stepwell_export.stages",
    "testing": "stepwell.testing",
    "torch": "stepwell_export.torch",
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
            found = getattr(importlib.import_module(_HOMES[name]), _NAMES_THERE.get(name, name))
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def main() -> None:
    """Run the `stepwell` program."""
    from stepwell.interrupted import loading

    with loading():
        from stepwell.cli import main as run
    run()


if __name__ == "__main__":
    main()
