"""`:memory:`: the address of an engine in this process, which starts and ends with its client.

The service registers the engine as `memory` in the entry-point group `stepwell_client.engines`, so that the client
imports nothing of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from stepwell_client.errors import ClientError

MEMORY: Final = ":memory:"

StrPath = str | os.PathLike[str]


class Engine(Protocol):
    """An engine that has started: an instance of the class that is registered."""

    url: str
    """The address for clients, `unix://PATH`."""
    store_url: str
    """The address of its store."""

    def close(self) -> None:
        """Stop it; calls after the first have no effect."""


def start(url: str, models: StrPath | Sequence[StrPath] | None, settings: Mapping[str, Any] | None) -> Engine | None:
    """Start an engine if the URL is `:memory:`; None for any other URL.

    Args:
        url: The URL of a client.
        models: One or more folders with models; None: `models`.
        settings: Further settings of the engine by name.

    Raises:
        ClientError: `bad_url`: models or settings are given for a service at another address; `missing_extra`: the
            service is not installed.
        StepwellError: The engine does not start.
    """
    if url != MEMORY:
        if models is not None or settings is not None:
            raise ClientError(
                "bad_url",
                f"Models or settings are given for the service at {url!r}, which has its own.",
                fix=f"Leave them out, or use the address {MEMORY!r} for an engine in this process.",
            )
        return None
    folders = ["models"] if models is None else [models] if isinstance(models, str | os.PathLike) else models
    return _registered()([Path(folder).absolute() for folder in folders], settings)


def _registered() -> Callable[[Sequence[Path], Mapping[str, Any] | None], Engine]:
    from importlib.metadata import entry_points  # other clients need not wait for it

    absent, cause = "stepwell", None
    for point in entry_points(group="stepwell_client.engines", name="memory"):
        try:
            return point.load()  # type: ignore[no-any-return]
        except ModuleNotFoundError as exc:
            absent, cause = str(exc.name), exc
    raise ClientError(
        "missing_extra",
        f"The address {MEMORY!r} is an engine in this process, and {absent} is not installed.",
        fix="Run `pip install stepwell`, or use the address of a service.",
    ) from cause
