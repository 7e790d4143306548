"""Stepwell's public names: export recurrent models, serve them, and step streams by a client.

Each name is imported when it is first used: `import stepwell` loads no framework, no web server and no onnxruntime.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model_export import stages, torch
    from model_export.adopt.adopt_file import Adopted
    from model_export.adopt.adopt_file import adopt_file as adopt
    from model_export.converted import verify_model
    from model_export.errors import StepwellError
    from model_export.export import Exported
    from model_export.export import export_source as export
    from model_export.keras import Call, Value, register_step_rule, to_step_model
    from model_export.manifest import Manifest
    from model_export.spec import StepSpec
    from model_export.stages import Pipeline
    from model_export.step_model import StepModel
    from model_export.streaming import convert as convert_onnx
    from service import extend, mlflow, testing
    from service.client import (
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
    from service.notebook import LiveModel, run

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
    **dict.fromkeys(("AsyncClient", "Client", "ClientError", "Event", "Gap", "Rollout"), "service.client"),
    **dict.fromkeys(("Snapshot", "State", "Status", "StepResult"), "service.client"),
    **dict.fromkeys(("Call", "Value", "register_step_rule", "to_step_model"), "model_export.keras"),
    "Adopted": "model_export.adopt.adopt_file",
    "Exported": "model_export.export",
    "Manifest": "model_export.manifest",
    "Pipeline": "model_export.stages",
    "StepModel": "model_export.step_model",
    "StepSpec": "model_export.spec",
    "StepwellError": "model_export.errors",
    "adopt": "model_export.adopt.adopt_file",
    "convert_onnx": "model_export.streaming",
    "export": "model_export.export",
    # What pyproject.toml registers.
    **dict.fromkeys(("AMQP", "AMQPS", "FILE", "KAFKA", "KAFKAS"), "service.connect.brokers"),
    **dict.fromkeys(("MQTT", "MQTTS", "NATS", "REDIS", "REDISS"), "service.connect.brokers"),
    "GrpcAddon": "service.grpc_api.addon",
    "LiveModel": "service.notebook",
    "run": "service.notebook",
    "verify_model": "model_export.converted",
}
"""The module of each name."""

_NAMES_THERE = {"adopt": "adopt_file", "convert_onnx": "convert", "export": "export_source"}
"""What a name is called in its module, where that is something else."""

_MODULES = {
    "extend": "service.extend",
    "mlflow": "service.mlflow",
    "mlflow_deployments": "service.mlflow.deployments",  # for the entry point by which MLflow finds it
    "ray": "service.offline.ray",
    "spark": "service.offline.spark",
    "stages": "model_export.stages",
    "testing": "service.testing",
    "torch": "model_export.torch",
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
    from service.interrupted import loading

    with loading():
        from service.cli import main as run
    run()


if __name__ == "__main__":
    main()
