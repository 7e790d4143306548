"""The folder in which the workers of one service share their metrics."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

from stepwell.settings import METRICS_FOLDER_ENV

_log = logging.getLogger(__name__)


def shared_folder() -> Path | None:
    """Return the folder that the workers share, or None if this process counts for itself."""
    named = os.environ.get(METRICS_FOLDER_ENV)
    shares = values.ValueClass is not values.MutexValue  # chosen once, when prometheus_client was imported
    if named and shares:
        Path(named).mkdir(parents=True, exist_ok=True)
        return Path(named)
    if named:
        _log.warning(
            "%s was set after prometheus_client was imported: metrics are of this process alone", METRICS_FOLDER_ENV
        )
    return None


def remove_dead_workers(folder: Path) -> None:
    """Remove the gauges of workers that were killed; their counts are kept."""
    for pid in {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*.db")}:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]  # has no types
        except PermissionError:
            continue
