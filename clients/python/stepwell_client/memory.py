"""`:memory:`: the address of an engine in this process, which starts and ends with its client."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stepwell_client.errors import ClientError

if TYPE_CHECKING:
    from stepwell.addons.embedded_store.in_process import InProcessService

MEMORY: Final = ":memory:"

StrPath = str | os.PathLike[str]


def start(
    url: str, models: StrPath | Sequence[StrPath] | None, settings: Mapping[str, Any] | None
) -> InProcessService | None:
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
    try:
        # the service, which other clients never load
        from stepwell.addons.embedded_store.in_process import InProcessService
    except ModuleNotFoundError as exc:
        raise ClientError(
            "missing_extra",
            f"The address {MEMORY!r} is an engine in this process, and {exc.name} is not installed.",
            fix="Run `pip install stepwell`, or use the address of a service.",
        ) from exc

    folders = ["models"] if models is None else [models] if isinstance(models, str | os.PathLike) else models
    return InProcessService([Path(folder).absolute() for folder in folders], settings)
