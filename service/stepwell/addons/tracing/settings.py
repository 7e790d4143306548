"""`TracingSettings`: traces have no settings but the `OTEL_*` variables, which it checks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

from stepwell.settings import AddonSettings, Settings
from stepwell_export.runtime.errors import MissingExtraError, StepwellError

_SWITCHES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")
_PROTOCOL: Final = "http/protobuf"
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class TracingError(StepwellError):
    """The `OTEL_*` variables request what is not supported; the service does not start."""

    code = "bad_setting"


class TracingSettings(AddonSettings):
    """Checks the `OTEL_*` variables."""

    def check(self, settings: Settings) -> None:
        """Check that the traces that the environment requests can be sent.

        Raises:
            MissingExtraError, TracingError: As for `check_tracing`.
        """
        check_tracing(os.environ)


def check_tracing(environment: Mapping[str, str]) -> bool:
    """Return whether the variables switch traces on, after checking that they can be sent.

    Raises:
        MissingExtraError: Traces are on, and OpenTelemetry's SDK is not installed.
        TracingError: Another exporter or protocol is configured.
    """
    if not _is_on(environment):
        return False
    protocol = next((value for name in _PROTOCOLS if (value := environment.get(name))), _PROTOCOL)
    if protocol != _PROTOCOL:
        raise TracingError(
            f"The OTLP protocol is {protocol!r}; expected {_PROTOCOL!r}.",
            fix=f"Set OTEL_EXPORTER_OTLP_PROTOCOL={_PROTOCOL} and the receiver's HTTP port, which is usually 4318.",
        )
    if not _is_installed():
        raise MissingExtraError(
            "OTEL_* variables switch traces on, and OpenTelemetry's SDK is not installed.",
            fix="Install it: pip install 'stepwell[otel]'. Or set OTEL_SDK_DISABLED=true.",
        )
    return True


def _is_installed() -> bool:
    try:
        return all(find_spec(name) for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"))
    except ModuleNotFoundError:  # a package above them is missing
        return False


def _is_on(environment: Mapping[str, str]) -> bool:
    """Return whether the variables switch traces on.

    Raises:
        TracingError: They name an exporter other than `otlp`.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter == "none" or not any(environment.get(name) for name in _SWITCHES):
        return False
    if exporter not in ("", "otlp"):
        raise TracingError(
            f"OTEL_TRACES_EXPORTER is {exporter!r}; expected 'otlp' or 'none'.",
            fix="Send traces to a collector by OTLP; it can pass them on in any other format.",
        )
    return True
